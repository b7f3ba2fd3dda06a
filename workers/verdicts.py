"""What a target may raise to say what becomes of its run. Anything else that it raises leaves that to its task."""

import math
from datetime import timedelta
from typing import Any


class TryAgain(Exception):
    """This attempt failed; the next one is to be in `after` seconds, whatever the task's back-off is.

    It counts as an attempt: where the task allows no other one, the run has failed.
    """

    def __init__(self, message: str = "", *, after: float | timedelta) -> None:
        seconds = after.total_seconds() if isinstance(after, timedelta) else float(after)
        if not 0 <= seconds < math.inf:
            raise ValueError(f"after is {after!r}: it must be a number of seconds, not below 0")
        super().__init__(message)
        self.after = seconds

    def __reduce__(self) -> Any:
        return _again, (str(self), self.after)


class GiveUp(Exception):
    """This attempt failed, and another one would too: the run has failed, however many its task allows."""


def after(exc: BaseException) -> float | None:
    """In how many seconds the next attempt is to be by what was raised: infinite for never, None where it says
    nothing."""
    if isinstance(exc, TryAgain):
        return exc.after
    return math.inf if isinstance(exc, GiveUp) else None


def _again(message: str, seconds: float) -> TryAgain:
    return TryAgain(message, after=seconds)
