"""The doors through which the code that fires reaches the world, and what stands behind them in the simulation: the
clocks, PostgreSQL and the broker. Whoever calls is known by the strand that runs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from app import clock, db, errors, packs
from app.messages import Parcel
from app.publishing import CONFIRM_TIMEOUT
from simulator import world
from simulator.links import Link
from simulator.postgresql_model import LOCK_TIMEOUT, Refused, Transaction
from simulator.tables import EPOCH, Tables

MESSAGE = 100e-6
"""Seconds that a message takes its sender."""

NOTHING_KNOWN = packs.Pace(durations={}, processes={})


@contextmanager
def opened() -> Iterator[None]:
    """Within it those who run as strands are in the simulated world."""
    with (
        mock.patch.multiple(clock, now=_now, monotonic=_monotonic, sleep=world.wait),
        mock.patch.multiple(db, transaction=_transaction, statement=_statement, execute_anew=db.execute),
        mock.patch.multiple(packs, pace=lambda: NOTHING_KNOWN),
    ):
        yield


class Failures(logging.Handler):
    """What the real code logged as an error: none is to be expected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


def _now() -> datetime:
    process = world.current().process
    return EPOCH + timedelta(seconds=process.world.time + process.skew)


def _monotonic() -> float:
    return world.current().process.monotonic()


def _transaction(*, planned: bool = False) -> AbstractContextManager[Any]:  # noqa: ARG001 - nothing is planned here
    return _session(alone=False)


def _statement() -> AbstractContextManager[Any]:
    return _session(alone=True)


@contextmanager
def _session(*, alone: bool) -> Iterator["Session"]:
    session = Session(world.current().process, alone=alone)
    yield session  # one that is left by an error is never committed: the server ends it
    session.end()
    for call in session.info.get("after", ()):
        call()


class Result(list[Any]):
    """Rows, as the callers read them."""

    def all(self) -> "Result":
        return self

    def scalars(self) -> "Result":
        return Result(row[0] for row in self)

    def scalar_one(self) -> Any:
        [[value]] = self
        return value


class Session:
    """A session of SQLAlchemy's and its connection, on a link of the process's own."""

    def __init__(self, process: Any, *, alone: bool) -> None:
        self.process = process
        self.tables: Tables = process.system.tables
        self.link: Link = process.database
        self.info: dict[str, Any] = {}
        self.alone = alone
        self.transaction: Transaction | None = None
        self.until = process.world.time + db.PATIENCE

    def flush(self) -> None:
        """Nothing: what the ORM would hold back is sent at once."""

    def connection(self) -> "Session":
        return self

    def execute(self, statement: Any, given: Mapping[str, Any]) -> Result:
        if self.alone or self.transaction is None:
            self._begin()
        tx = self.transaction
        assert tx is not None
        act = lambda: self.tables.statement(tx, statement, given)  # noqa: E731
        return Result(self._call(lambda reply: self.tables.perform(tx, act, reply)))

    def end(self) -> None:
        tx = self.transaction
        if tx is not None and not self.alone:
            self._call(lambda reply: self.tables.commit(tx, reply))

    def _begin(self) -> None:
        """It travels before the first statement, by itself."""
        self.transaction = Transaction(alone=self.alone)
        self.process.transactions = [tx for tx in self.process.transactions if tx.is_open]
        self.process.transactions.append(self.transaction)
        self.tables.counted["transactions"] += 1
        if not self.alone:
            self.tables.counted["round trips"] += 1
            world.wait(2 * self.link.latency)

    def _call(self, act: Callable[[world.Reply], None]) -> Any:
        self.tables.counted["round trips"] += 1  # a statement, or a commit
        left = max(0.0, self.until - self.process.world.time)
        answer = world.call(self.link.way(), act, left, work=LOCK_TIMEOUT + 1.0)
        if answer is None or isinstance(answer[0], Refused):
            raise errors.Unavailable
        return answer[0]


class Publisher:
    """The broker, and the publisher's part of it: what is confirmed was taken, what is not may have been."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.sent = 0
        """Messages that were confirmed."""

    def reaches(self) -> bool:
        return world.call(self.process.broker.way(), lambda reply: reply([True]), CONFIRM_TIMEOUT) is not None

    def publish(self, batch: Sequence[Parcel]) -> list[Parcel]:
        process = self.process
        world.wait(MESSAGE * len(batch))

        def take(reply: world.Reply) -> None:
            for parcel in batch:
                process.system.deliver(parcel)
            reply(list(batch))

        answer = world.call(process.broker.way(), take, CONFIRM_TIMEOUT)
        confirmed: list[Parcel] = answer[0] if answer else []
        self.sent += len(confirmed)
        return confirmed

    def close(self) -> None:
        """Nothing is held."""
