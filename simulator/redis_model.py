"""Redis as a beat knows it: its scripts and what it reads, on a clock that is given.

tests/integration/test_leases.py and test_simulator.py hold its answers against those of a real Redis.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from beat import entries, leases

Script = Callable[[int, Sequence[str], list[str]], Any]


class SortedSet:
    """Members by their scores."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}
        self.order: list[tuple[float, str]] = []

    def add(self, score: float, member: str) -> None:
        self.remove(member)
        self.scores[member] = score
        insort(self.order, (score, member))

    def remove(self, member: str) -> None:
        if member in self.scores:
            del self.order[bisect_left(self.order, (self.scores.pop(member), member))]

    def between(self, least: str | float, most: str | float, limit: int) -> list[tuple[str, float]]:
        """As ZRANGE BYSCORE has the bounds; those of ours are `-inf`, `(1.5`, `+inf` or a number."""
        text = str(least)
        above = float(text.removeprefix("("))
        first = (bisect_right if text.startswith("(") else bisect_left)(self.order, above, key=lambda pair: pair[0])
        found = self.order[first : first + limit]
        return [(member, score) for score, member in found if score <= float(most)]


class RedisModel:
    """`now` is Redis's own clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.counted: Counter[str] = Counter()
        """How often what was done."""
        self.scripts: dict[str, Script] = {
            leases.RENEW: self._renew,
            leases.TAKE: self._take,
            leases.RELEASE: self._release,
            entries.DUE: self._due,
            entries.WRITE: self._write,
        }
        self.clear()

    def clear(self) -> None:
        """FLUSHALL."""
        self.strings: dict[str, tuple[str, float]] = {}
        """A value and until when it is there, in milliseconds."""
        self.scores: dict[str, int] = {}
        """The live beats and when each was heard of, the oldest first."""
        self.sets: dict[str, SortedSet] = {}

    def execute(self, source: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.counted["scripts"] += 1
        self.counted["keys"] += len(keys)
        return self.scripts[source](self._milliseconds(), keys, [str(arg) for arg in args])

    def get(self, key: str) -> str | None:
        return self._get(self._milliseconds(), key)

    def exists(self, key: str) -> int:
        self._count()
        return int(self.get(key) is not None)

    def zrem(self, key: str, member: str) -> None:
        self._count()
        if key in self.sets:
            self.sets[key].remove(member)

    def _count(self) -> None:
        self.counted["reads"] += 1
        self.counted["keys"] += 1

    def _get(self, now: int, key: str) -> str | None:
        value, until = self.strings.get(key, (None, 0))
        return value if now < until else None

    def _renew(self, now: int, keys: Sequence[str], args: list[str]) -> list[Any]:
        name, ttl, heard, *tokens = args
        self.scores.pop(name, None)
        self.scores[name] = now
        while self.scores[oldest := next(iter(self.scores))] <= now - int(heard):
            del self.scores[oldest]
        renewed = [int(self._get(now, key) == token) for key, token in zip(keys[1:], tokens, strict=True)]
        self.strings |= {
            key: (token, now + int(ttl)) for key, token, ours in zip(keys[1:], tokens, renewed, strict=True) if ours
        }
        return [list(self.scores), renewed]

    def _take(self, now: int, keys: Sequence[str], args: list[str]) -> list[int]:
        name, ttl, room, token = args
        taken: list[int] = []
        for index, key in enumerate(keys):
            if len(taken) >= int(room):
                break
            holder = self._get(now, key)
            if holder is None or holder.startswith(f"{name}:"):
                self.strings[key] = (token, now + int(ttl))
                taken.append(index)
        return taken

    def _release(self, now: int, keys: Sequence[str], args: list[str]) -> int:
        self.scores.pop(args[0], None)
        mine = [key for key, token in zip(keys[1:], args[1:], strict=True) if self._get(now, key) == token]
        for key in mine:
            del self.strings[key]
        return len(mine)

    def _due(self, _now: int, keys: Sequence[str], args: list[str]) -> list[list[Any]]:
        until, limit = args
        found = []
        for members in (self.sets.get(key, SortedSet()) for key in keys):
            due = [member for member, _ in members.between("-inf", until, int(limit))]
            coming = members.between(f"({until}", "+inf", 1)
            found.append([due, str(coming[0][1]) if coming else ""])
        return found

    def _write(self, now: int, keys: Sequence[str], args: list[str]) -> list[int]:
        mark, *rest = args
        written = []
        for lock, schedule, mirrored in zip(keys[::3], keys[1::3], keys[2::3], strict=True):
            token, prefix, count = rest[:3]
            flat, rest = rest[3 : 3 + 3 * int(count)], rest[3 + 3 * int(count) :]
            ours = self._get(now, lock) == token
            if ours:
                self._put(self.sets.setdefault(schedule, SortedSet()), prefix, flat)
            if ours and mark:
                self.strings[mirrored] = "1", float("inf")
            written.append(int(ours))
        return written

    def _put(self, members: SortedSet, prefix: str, flat: list[str]) -> None:
        for name, score in zip(flat[::3], flat[1::3], strict=True):
            if score:
                members.add(float(score), prefix + name)
            else:
                members.remove(prefix + name)
        self.counted["entries"] += len(flat) // 3

    def _milliseconds(self) -> int:
        return int(self.now() * 1000)
