"""PostgreSQL's transactions: rows that are locked, and writes that are seen from their commit on. It knows no tables.

What a transaction reads is what others have committed: none of ours reads what it wrote itself before. A statement that
waits for a lock holds none of the rows that it has yet to lock; the real one would lock them one by one.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from simulator.world import Reply, World

LOCK_TIMEOUT = 3.0
IDLE_TIMEOUT = 4.0
"""Seconds, as `db.LIBPQ_OPTIONS` has them."""

WORK_PER_ROW = 20e-6
"""Seconds that a row costs, about."""

Given = Mapping[str, Any]


class Refused(Exception):
    """The server gave it up: a lock was not had in time, or the transaction was ended meanwhile."""


class Blocked(Exception):
    """It waits for another transaction."""

    def __init__(self, by: "Transaction") -> None:
        self.by = by


class Transaction:
    """What a connection has begun. `alone`: a statement that is one by itself."""

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.is_open = True
        self.touched = 0.0
        self.locked: list[Hashable] = []
        self.writes: list[Callable[[], None]] = []
        self.waiters: list[Callable[[], None]] = []


class Server:
    """One server and its clock, which is the world's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.locked: dict[Hashable, Transaction] = {}
        self.counted: Counter[str] = Counter()

    def perform(self, tx: Transaction, act: Callable[[], list[Any]], reply: Reply) -> None:
        """Does a statement, now or when those are done that it waits for. Replies with rows, or with Refused."""
        until = self.world.time + LOCK_TIMEOUT
        answered = False

        def answer(value: Any) -> None:
            nonlocal answered
            answered = True
            rows = len(value) if isinstance(value, list) else 0
            self.world.at(self.world.time + WORK_PER_ROW * rows, lambda: reply(value))

        def attempt() -> None:
            if answered:
                return
            if not tx.is_open:
                answer(Refused())
                return
            try:
                rows = act()
            except Blocked as exc:
                if self.world.time < until:
                    exc.by.waiters.append(attempt)
                    self.world.at(until, attempt)
                    return
                self.abort(tx)
                answer(Refused())
                return
            if tx.alone:
                self._end(tx, keep=True)
            self._watch(tx)
            answer(rows)

        attempt()

    def commit(self, tx: Transaction, reply: Reply) -> None:
        self.perform(tx, lambda: self._end(tx, keep=True), reply)

    def abort(self, tx: Transaction) -> None:
        """Its connection is gone, or was silent for too long."""
        if tx.is_open:
            self._end(tx, keep=False)

    def is_free(self, tx: Transaction, key: Hashable) -> bool:
        return self.locked.get(key, tx) is tx

    def lock(self, tx: Transaction, keys: Iterable[Hashable]) -> None:
        """Locks these for this transaction. Raises Blocked where another one has one of them."""
        wanted = list(keys)
        for key in wanted:
            if not self.is_free(tx, key):
                raise Blocked(self.locked[key])
        for key in wanted:
            if key not in self.locked:
                self.locked[key] = tx
                tx.locked.append(key)

    def _watch(self, tx: Transaction) -> None:
        """Ends a transaction of which nothing is heard any more."""
        touched = tx.touched = self.world.time
        if tx.is_open and tx.locked:
            self.world.at(touched + IDLE_TIMEOUT, lambda: self.abort(tx) if tx.touched == touched else None)

    def _end(self, tx: Transaction, *, keep: bool) -> list[Any]:
        tx.is_open = False
        for write in tx.writes if keep else ():
            write()
        for key in tx.locked:
            del self.locked[key]
        for attempt in tx.waiters:
            self.world.at(self.world.time, attempt)
        return []
