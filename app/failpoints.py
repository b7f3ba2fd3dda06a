"""Fail points: named places in which a process ends or pauses itself, so that a drill can prove them harmless.

In beat: `fired` (runs are committed and not yet published), `published` (not yet confirmed), `confirmed` (neither
PostgreSQL nor Redis told). In a worker: `claimed` (not yet called), `called` (not yet recorded), `recorded` (its
message not yet acknowledged).

Off unless `PUNCTUAL_FAIL_POINT` names one, which is refused on any database that is not a drill's or a test's.
"""

import logging
import os
import signal
import time
from dataclasses import dataclass, field
from functools import cache
from itertools import count

from app import settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FailPoint:
    """At the `nth` passing of `point` the process is killed or, where `pause` is given, sleeps for so many seconds."""

    point: str
    nth: int
    pause: float | None
    passings: "count[int]" = field(default_factory=lambda: count(1))

    def strike(self) -> None:
        """Counts a passing, and acts at the one that was asked for."""
        if next(self.passings) != self.nth:
            return
        log.warning("fail point %s: %s", self.point, "kill" if self.pause is None else f"pause of {self.pause} s")
        if self.pause is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            time.sleep(self.pause)


@cache
def armed() -> FailPoint | None:
    """The fail point of this process, if it has one. A forked child has a count of its own."""
    text = settings.load().PUNCTUAL_FAIL_POINT
    given = settings.FAIL_POINT.fullmatch(text)
    if given is None:
        return None
    return FailPoint(
        point=given["point"], nth=int(given["nth"]), pause=float(given["pause"]) if given["pause"] else None
    )


def reached(point: str) -> None:
    """Called at `point`. Does nothing in a process that has no fail point there."""
    found = armed()
    if found is not None and found.point == point:
        found.strike()
