"""What a child tells its worker of the pack in its hands, in memory that both share, so that it outlives the child.

A child that is killed in a pack takes with it what it knows: which run it was at, and the outcomes that it had not
recorded yet. Both stand here, so that its neighbours in the pack suffer nothing: the worker records what had ended,
and gives back what had not begun.

One page belongs to each process of the pool, and that process alone writes it. The worker reads it while the child
goes on: what changed meanwhile is not believed.
"""

import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from billiard.process import current_process

PAGES = 256
"""More processes than a worker has. Memory that is never written is never taken."""

SIZE = 128 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HEAD = struct.Struct("=16sdqqqq")
"""Pack; when it was claimed, on the monotonic clock and on PostgreSQL's; position; when that began; length."""
_NUMBERS = struct.Struct("=qq")
_NUMBER = struct.Struct("=q")
_POSITION, _LENGTH = 32, 48

_memory = mmap.mmap(-1, PAGES * SIZE)
"""Made before the pool forks: every child has the same."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run of the pack that ended: its position, its stamps by PostgreSQL's clock, and its outcome."""

    position: int
    started_at: datetime
    finished_at: datetime
    result: str | None = None
    reason: str | None = None
    error: dict[str, Any] | None = None

    def encode(self) -> bytes:
        stamps = _number(self.started_at), _number(self.finished_at)
        return json.dumps([self.position, *stamps, self.result, self.reason, self.error]).encode() + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        position, started_at, finished_at, result, reason, error = json.loads(text)
        return cls(
            position=position,
            started_at=_instant(started_at),
            finished_at=_instant(finished_at),
            result=result,
            reason=reason,
            error=error,
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where a child stands in a pack. `position` is the run that it is at, -1 before the first."""

    claimed: float
    claimed_at: datetime
    position: int
    began_at: datetime
    lines: list[Line]


class Page:
    """A child's own page."""

    def __init__(self, index: int) -> None:
        self.start = index % PAGES * SIZE

    def open(self, pack: UUID, claimed: float, claimed_at: datetime) -> None:
        """Begins with a pack that was just claimed."""
        at = _number(claimed_at)
        _HEAD.pack_into(_memory, self.start, pack.bytes, claimed, at, -1, at, 0)

    def begin(self, position: int, at: datetime) -> None:
        """Says which run is next, before it begins."""
        _NUMBERS.pack_into(_memory, self.start + _POSITION, position, _number(at))

    def add(self, line: Line) -> bool:
        """Keeps an outcome. False: there is no room, and it must be recorded before the next run begins."""
        text = line.encode()
        [length] = _NUMBER.unpack_from(_memory, self.start + _LENGTH)
        begin = self.start + _HEAD.size + length
        if begin + len(text) > self.start + SIZE:
            return False
        _memory[begin : begin + len(text)] = text
        _NUMBER.pack_into(_memory, self.start + _LENGTH, length + len(text))  # the text counts from here on
        return True

    def clear(self) -> None:
        """Forgets the outcomes, which are recorded now."""
        _NUMBER.pack_into(_memory, self.start + _LENGTH, 0)

    def close(self) -> None:
        """Ends the pack: nothing of it is in this child's hands any more."""
        _memory[self.start : self.start + 16] = bytes(16)


def own() -> Page:
    """The page of this process."""
    return Page(getattr(current_process(), "index", 0))


def read(pack: UUID) -> Reading | None:
    """Where a child stands in this pack, or None where none has it in its hands."""
    for start in range(0, PAGES * SIZE, SIZE):
        if _memory[start : start + 16] == pack.bytes:
            return _read(start, pack)
    return None


def _read(start: int, pack: UUID) -> Reading | None:
    head = _memory[start : start + _HEAD.size]
    found, claimed, claimed_at, position, began_at, length = _HEAD.unpack(head)
    text = _memory[start + _HEAD.size : start + _HEAD.size + length]
    if found != pack.bytes:
        return None
    still = _memory[start : start + _HEAD.size] == head  # else the child went on meanwhile, and text may be torn
    return Reading(
        claimed=claimed,
        claimed_at=_instant(claimed_at),
        position=position,
        began_at=_instant(began_at),
        lines=list(_lines(text)) if still else [],
    )


def _lines(text: bytes) -> Iterator[Line]:
    return (Line.decode(line) for line in text.splitlines())


def _number(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def _instant(number: int) -> datetime:
    return _EPOCH + number * _MICROSECOND
