"""The one place that reads the wall clock. Everything else takes `now` as an argument.

What fires reads the seconds that pass, and rests, here too: the simulator has time of its own.
"""

import time
from datetime import UTC, datetime

monotonic = time.monotonic
sleep = time.sleep


def now() -> datetime:
    """The current instant, aware, in UTC."""
    return datetime.now(UTC)
