"""What a child tells its worker of the pack in its hands, in memory that both share, so that it outlives the child.

A child that is killed in a pack takes with it what it knows: which run it was at, and the outcomes that it had not
recorded yet. Both stand here, so that its neighbours in the pack suffer nothing: the worker records what had ended,
and gives back what had not begun.

One page belongs to each process of the pool, and that process alone writes it. The worker reads it while the child
goes on: what changed meanwhile is not believed. What belongs together is made elsewhere and put there at one stroke, as
`pack_into` fills its place with zeros first: the worker would see a run begin in 1970.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self
from uuid import UUID

from billiard.process import current_process

PAGES = 256
"""More processes than a worker has. Memory that is never written is never taken."""

SIZE = 128 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HEAD = struct.Struct("=16sqdqqqqq")
"""Pack; process; when it was claimed, on the monotonic clock and on PostgreSQL's; the run that is next; the last one
that began, and when; length."""
_NUMBERS = struct.Struct("=qq")
_NUMBER = struct.Struct("=q")
_ID, _NEXT, _BEGUN, _LENGTH = 0, 40, 48, 64

TRIES = 100
"""Looks at a page that changes meanwhile. A run takes longer than a look."""

_memory = mmap.mmap(-1, PAGES * SIZE)
"""Made before the pool forks: every child has the same."""


class Line(NamedTuple):
    """A run of the pack that ended: its position, its stamps by PostgreSQL's clock, and its outcome."""

    position: int
    started_at: datetime
    finished_at: datetime
    result: str | None = None
    reason: str | None = None
    error: dict[str, Any] | None = None
    after: float | None = None
    """In how many seconds the next attempt is to be, where the target said so."""

    def encode(self) -> bytes:
        stamps = _number(self.started_at), _number(self.finished_at)
        return json.dumps([self.position, *stamps, self.result, self.reason, self.error, self.after]).encode() + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        position, started_at, finished_at, result, reason, error, after = json.loads(text)
        return cls(
            position=position,
            started_at=_instant(started_at),
            finished_at=_instant(finished_at),
            result=result,
            reason=reason,
            error=error,
            after=after,
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where a child stands in a pack: the run that it begins next, or has begun, and the last one that it did begin; -1
    before the first."""

    claimed: float
    claimed_at: datetime
    next: int
    begun: int
    began_at: datetime
    lines: list[Line]


class Page:
    """A child's own page."""

    def __init__(self, index: int) -> None:
        self.start = index % PAGES * SIZE

    def open(self, pack: UUID, claimed: float, claimed_at: datetime) -> None:
        """Begins with a pack that was just claimed."""
        at = _number(claimed_at)
        self.close()
        self._put(_ID, _HEAD.pack(b"", os.getpid(), claimed, at, -1, -1, at, 0))
        self._put(_ID, pack.bytes)  # last: from here on it is read

    def approach(self, position: int) -> None:
        """Says which run is next, before it is asked whether there is time for it."""
        self._put(_NEXT, _NUMBER.pack(position))

    def begin(self, position: int, at: datetime) -> None:
        """Says that it begins."""
        self._put(_BEGUN, _NUMBERS.pack(position, _number(at)))

    def add(self, line: Line) -> bool:
        """Keeps an outcome. False: there is no room, and it must be recorded before the next run begins."""
        text = line.encode()
        [length] = _NUMBER.unpack_from(_memory, self.start + _LENGTH)
        begin = self.start + _HEAD.size + length
        if begin + len(text) > self.start + SIZE:
            return False
        _memory[begin : begin + len(text)] = text
        self._put(_LENGTH, _NUMBER.pack(length + len(text)))  # the text counts from here on
        return True

    def clear(self) -> None:
        """Forgets the outcomes, which are recorded now."""
        self._put(_LENGTH, _NUMBER.pack(0))

    def close(self) -> None:
        """Ends the pack: nothing of it is in this child's hands any more."""
        self._put(_ID, bytes(16))

    def _put(self, offset: int, content: bytes) -> None:
        _memory[self.start + offset : self.start + offset + len(content)] = content


def own() -> Page:
    """The page of this process."""
    return Page(getattr(current_process(), "index", 0))


def read(pack: UUID, process: int) -> Reading | None:
    """Where a process stands in this pack, or None where it does not have it in its hands, or goes on too fast for a
    look at it."""
    for start in range(0, PAGES * SIZE, SIZE):
        if _memory[start : start + 16] == pack.bytes and (reading := _read(start, pack, process)):
            return reading
    return None


def _read(start: int, pack: UUID, process: int) -> Reading | None:
    for _ in range(TRIES):
        head = _memory[start : start + _HEAD.size]
        found, owner, claimed, claimed_at, coming, begun, began_at, length = _HEAD.unpack(head)
        if (found, owner) != (pack.bytes, process):
            return None
        text = _memory[start + _HEAD.size : start + _HEAD.size + length]
        if _memory[start : start + _HEAD.size] == head:  # else the child went on meanwhile
            return Reading(
                claimed=claimed,
                claimed_at=_instant(claimed_at),
                next=coming,
                begun=begun,
                began_at=_instant(began_at),
                lines=list(_lines(text)),
            )
    return None


def _lines(text: bytes) -> Iterator[Line]:
    return (Line.decode(line) for line in text.splitlines())


def _number(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def _instant(number: int) -> datetime:
    return _EPOCH + number * _MICROSECOND
