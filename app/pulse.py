"""Signs of life of a thread: what it set out to do last. Whatever may wait gives one before and one after.

A beat's watchdog looks at them; in other processes they are a dictionary's write that nobody reads.
"""

import threading
from dataclasses import dataclass

STILL = 4.0
"""Seconds without a sign after which a thread hangs. No single wait of ours is as long, but for those that say so."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sign:
    """What a thread set out to do, and within how many seconds it has done it, or given it up."""

    step: str
    within: float


_signs: dict[int, Sign] = {}


def mark(step: str, within: float = STILL) -> None:
    """The calling thread gives a sign."""
    _signs[threading.get_ident()] = Sign(step=step, within=within)


def last(thread: int) -> Sign | None:
    """The latest sign of a thread; another object each time it gave one."""
    return _signs.get(thread)
