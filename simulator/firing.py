"""Beats that do all that beats do to fire: they hold leases, mirror, ring, and audit. Theirs is the real code of
`beat.scheduler`, `beat.mirror`, `beat.entries`, `beat.leases`, `beat.chores`, `app.dispatch` and all that these call.

Left out are the chores that fire nothing and send nothing new, the watchdog, and workers: a run is executed 50 ms after
its message came.
"""

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from app import bell, schedules
from app.messages import Parcel
from app.states import TaskState
from beat.chores import Chores, Done
from beat.leases import Leases
from beat.scheduler import PunctualScheduler
from simulator import doors, world
from simulator.links import Link
from simulator.postgresql_model import Transaction
from simulator.system import Beat, System
from simulator.tables import EPOCH, Tables
from simulator.world import World

EXECUTED_AFTER = 0.05

CHORES = frozenset({"fire_overdue", "publish_pending"})
"""The audit path, and what sends again."""


class Scheduler(PunctualScheduler):
    """The real one without Celery's part of it and without threads."""

    def __init__(self, client: Any, leases: Leases, publisher: Any) -> None:
        self.equip(client, leases, publisher)


class FiringBeat(Beat):
    """One process of two threads: one ticks, the other does chores."""

    system: "FiringSystem"

    def begin(self) -> None:
        self.database, self.broker = Link(self), Link(self)
        self.transactions: list[Transaction] = []
        self.publisher, self.auditor = doors.Publisher(self), doors.Publisher(self)
        self.scheduler = Scheduler(self.client, self.leases, self.publisher)
        self.chores = Chores(self.auditor, lambda: Done(0), self.leases.held)  # type: ignore[arg-type]
        self.spawn(self._tick, self._do_chores, within=1.0)

    def turned(self) -> None:
        """Nothing: who believes in which lease is looked at where that is all that beats do."""

    def kill(self) -> None:
        """Where it is the process that dies, and not its machine, the server hears of it."""
        super().kill()
        if self.world.random.random() < 0.5:
            for tx in self.transactions:
                self.system.tables.abort(tx)

    def _tick(self) -> None:
        while not self.stopping:
            self.scheduler.tick()
            self.system.ticks += 1
        self.leases.release()
        self.alive = False

    def _do_chores(self) -> None:
        mine = [chore for chore in self.chores.all if chore.name in self.system.chores]
        while mine:
            for chore in mine:
                if self.monotonic() >= chore.next_at:
                    self.chores.turn(chore)
            world.wait(min(chore.next_at for chore in mine) - self.monotonic())


class FiringSystem(System):
    """The beats, all stores, and the tasks."""

    beat = FiringBeat

    def __init__(
        self,
        world: World,
        buckets: int,
        *,
        kind: type[Leases] = Leases,
        tables: type[Tables] = Tables,
        chores: frozenset[str] = CHORES,
    ) -> None:
        super().__init__(world, buckets, kind)
        self.tables = tables(world)
        self.chores = chores
        self.delivered: dict[UUID, float] = {}
        """When the broker took the first message of a run."""
        self.ticks = 0
        self.failures = doors.Failures()

    def run(self, seconds: float) -> None:
        logger = logging.getLogger()
        logger.addHandler(self.failures)
        try:
            with doors.opened():
                super().run(seconds)
        finally:
            logger.removeHandler(self.failures)

    def deliver(self, parcel: Parcel) -> None:
        """The broker has a message, and gives it to a worker."""
        for message in parcel.messages:
            self.delivered.setdefault(message.id, self.world.time)
            self.world.at(self.world.time + EXECUTED_AFTER, lambda run=message.id: self.tables.execute(run))  # type: ignore[misc]

    def register(self, count: int, every: float, **columns: Any) -> None:
        """Registers tasks that are due each so many seconds, at moments of their own, from the next time on."""
        chance = self.world.random
        now = self.tables.now()
        for _ in range(count):
            anchor = EPOCH + timedelta(milliseconds=chance.randrange(int(every * 1000)))
            read = schedules.parse({"type": "interval", "every": every, "anchor": anchor.isoformat()}, now=now)
            task_id = UUID(int=chance.getrandbits(128), version=4)
            table = schedules.Timetable(task_id=task_id, schedule=read)
            first = table.next_after(now)
            given = DEFAULTS | {"schedule": schedules.dump(read), "next_run_at": first} | columns
            bucket = task_id.int % self.buckets
            task = SimpleNamespace(id=task_id, bucket=bucket, name=str(task_id), **given)
            task.first, task.every = first, timedelta(seconds=every)  # for the judge
            self.tables.register(task)
            self.hints.publish(bell.Hint(bucket=bucket))


DEFAULTS: dict[str, Any] = {
    "target": "debug.echo",
    "args": [],
    "kwargs": {},
    "queue": "default",
    "priority": 5,
    "starts_at": None,
    "ends_at": None,
    "max_runs": None,
    "jitter": timedelta(0),
    "overlap": "allow",
    "catchup_policy": "latest",
    "catchup_window": timedelta(days=1),
    "timeout": timedelta(seconds=60),
    "run_count": 0,
    "last_run_at": None,
    "state": TaskState.ACTIVE,
    "version": 1,
    "mirrored_version": 0,
}
