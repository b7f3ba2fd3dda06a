"""How long runs of each target take: noted by the children, in memory that they share with their worker, and told to
everybody by its heartbeat. What counts is the target's own call, so that a busy machine makes none look slow.
"""

import json
import mmap
import struct
import time
from datetime import timedelta

from billiard.process import current_process
from sqlalchemy import Interval, Text, func, update

from app import db
from app.broker import celery_app
from app.models import Target

FORGET = 0.2
"""How much of what a slow run taught is forgotten with each heartbeat that saw only quicker ones."""

WINDOW = 1.0
"""Seconds after which a child begins anew with the longest run that it saw."""

PAGES = 256
SIZE = 4096

_HEAD = struct.Struct("=qq")
"""How often it was written, and the length of the text."""

_memory = mmap.mmap(-1, PAGES * SIZE)
"""Made before the pool forks: every child has the same."""


class _Seen:
    """What one process has seen: the longest run of each target."""

    def __init__(self) -> None:
        self.longest: dict[str, float] = {}
        self.until = 0.0
        self.writes = 0

    def note(self, target: str, seconds: float) -> bool:
        """Whether that is news."""
        if time.monotonic() > self.until:
            self.longest, self.until = {}, time.monotonic() + WINDOW
        if seconds <= self.longest.get(target, -1.0):
            return False
        self.longest[target] = seconds
        return True


_seen = _Seen()
_read = [0] * PAGES
"""How often each page had been written when the worker last read it."""


def note(target: str, seconds: float) -> None:
    """Notes how long a run took, unless its target declares `packable = False`. Called in a child."""
    if getattr(celery_app.tasks.get(target), "packable", True) and _seen.note(target, seconds):
        text = json.dumps(_seen.longest).encode()
        if len(text) <= SIZE - _HEAD.size:
            start = getattr(current_process(), "index", 0) % PAGES * SIZE
            _memory[start + _HEAD.size : start + _HEAD.size + len(text)] = text
            _seen.writes += 1
            _HEAD.pack_into(_memory, start, _seen.writes, len(text))


def collect() -> dict[str, float]:
    """What the children have noted since the last call: the longest run of each target. Called in the worker."""
    longest: dict[str, float] = {}
    for page in range(PAGES):
        writes, length = _HEAD.unpack_from(_memory, page * SIZE)
        if writes == _read[page]:
            continue
        start = page * SIZE + _HEAD.size
        try:
            noted = json.loads(_memory[start : start + length])
        except ValueError:  # the child is writing at this moment
            continue
        _read[page] = writes
        for target, seconds in noted.items():
            longest[target] = max(seconds, longest.get(target, 0.0))
    return longest


def tell(longest: dict[str, float]) -> None:
    """Tells everybody: at once where a target became slower, bit by bit where it became quicker."""
    if not longest:
        return
    durations = [timedelta(seconds=seconds) for seconds in longest.values()]
    told = db.rows("told", target=(Text(), list(longest)), duration=(Interval(), durations))
    calmer = Target.duration + (told.c.duration - Target.duration) * FORGET
    with db.transaction() as session:
        session.execute(
            update(Target)
            .where(Target.name == told.c.target)
            .values(duration=func.greatest(told.c.duration, calmer))
            .execution_options(synchronize_session=False)
        )
