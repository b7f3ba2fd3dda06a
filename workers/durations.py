"""How long runs of each target take: noted by the children, in memory that they share with their worker, and told to
everybody by its heartbeat. What counts is the target's own call, and the mean of a second: on a busy machine the
longest call tells of the machine.
"""

import json
import mmap
import struct
import time
from datetime import timedelta
from typing import Any

from billiard.process import current_process
from celery import Task
from sqlalchemy import Interval, Text, func, update

from app import db
from app.broker import celery_app
from app.models import Target

FORGET = 0.1
"""How much of what a slow run taught is forgotten with each heartbeat that saw only quicker ones."""

WINDOW = 1.0
"""Seconds after which a child begins anew."""

WRITE_EVERY = 0.05

PAGES = 256
SIZE = 4096

_HEAD = struct.Struct("=qq")
"""How often it was written, and the length of the text."""

_memory = mmap.mmap(-1, PAGES * SIZE)
"""Made before the pool forks: every child has the same."""


class _Seen:
    """What one process has seen: of each target how many calls, and the seconds that they took in all."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[int, float]] = {}
        self.since = 0.0
        self.writes = 0
        self.written_at = 0.0

    def note(self, target: str, seconds: float) -> None:
        now = time.monotonic()
        if now > self.since + WINDOW:
            self.calls, self.since = {}, now
        count, total = self.calls.get(target, (0, 0.0))
        self.calls[target] = count + 1, total + seconds
        if now > self.written_at + WRITE_EVERY:
            self.write()
            self.written_at = now

    def write(self) -> None:
        text = json.dumps({target: total / count for target, (count, total) in self.calls.items()}).encode()
        if len(text) > SIZE - _HEAD.size:
            return
        start = getattr(current_process(), "index", 0) % PAGES * SIZE
        _memory[start + _HEAD.size : start + _HEAD.size + len(text)] = text
        self.writes += 1
        _HEAD.pack_into(_memory, start, self.writes, len(text))


_seen = _Seen()

lately: dict[str, float] = {}
"""Seconds that runs of each target take by what this worker told: for its loop, which must not ask PostgreSQL."""

_read = [0] * PAGES
"""How often each page had been written when the worker last read it."""


def note(target: str, seconds: float) -> None:
    """Notes how long a call took, unless its target declares `packable = False`. Called in a child."""
    if is_packable(celery_app.tasks.get(target)):
        _seen.note(target, seconds)


def is_packable(task: Any) -> bool:
    """Whether runs of a target may travel in packs: not where it says so, nor where its class has hooks of its own,
    which only Celery calls."""
    hooks = ("before_start", "on_success", "on_failure", "on_retry", "after_return")
    return getattr(task, "packable", True) and all(getattr(type(task), h, None) is getattr(Task, h) for h in hooks)


def collect() -> dict[str, float]:
    """What the children have noted since the last call: the slowest mean of each target. Called in the worker."""
    slowest: dict[str, float] = {}
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
            slowest[target] = max(seconds, slowest.get(target, 0.0))
    return slowest


def tell(seen: dict[str, float]) -> None:
    """Tells everybody: at once where a target became slower, bit by bit where it became quicker."""
    for target, seconds in seen.items():
        before = lately.get(target, seconds)
        lately[target] = max(seconds, before + (seconds - before) * FORGET)
    if not seen:
        return
    names = sorted(seen)  # in one order in every worker, as in `heartbeat.offer`
    durations = (timedelta(seconds=seen[name]) for name in names)
    with db.statement() as session:
        db.execute(session, _TELL, db.arrays("told", target=names, duration=durations))


# Built once.
_told = db.rows("told", target=Text(), duration=Interval())
_CALMER = Target.duration + (_told.c.duration - Target.duration) * FORGET
_TELL = update(Target).where(Target.name == _told.c.target).values(duration=func.greatest(_told.c.duration, _CALMER))
