"""The simulator's models answer as the stores do. What they say of leases is in test_leases.py."""

import random
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import db, dispatch, keys, outbox, runs, tasks
from app.messages import Ticket
from app.models import Task
from app.states import TaskState
from beat import entries, mirror
from simulator.postgresql_model import Transaction
from simulator.redis_model import RedisModel
from simulator.tables import Tables
from simulator.world import World

SLOT = datetime(2026, 6, 1, 12, tzinfo=UTC)
BLOCKED = "blocked"
TASKS = 8


@pytest.mark.parametrize("seed", range(3))
def test_the_model_of_redis_answers_as_this_one_does_for_entries(redis_client, seed):
    chance = random.Random(seed)
    model = RedisModel(time.monotonic)
    script, due = (redis_client.register_script(source) for source in (entries.WRITE, entries.DUE))
    keys = [key(n) for n in (1, 2) for key in (entries.lock_key, entries.schedule_key, entries.mirrored_key)]
    for client in (redis_client, model):
        for bucket in (1, 2):
            set_string(client, entries.lock_key(bucket), "mine")
    for _ in range(150):
        args = [chance.choice(["", "", "1"])]
        for bucket in (1, 2):
            names = chance.sample("abcdef", chance.randint(0, 4))
            args += [chance.choice(["mine", "mine", "theirs"]), entries.prefix(bucket), str(len(names))]
            for name in names:
                args += [name, *chance.choice([("", ""), (repr(chance.randrange(5) / 2), "{}")])]
        assert script(keys=keys, args=args) == model.execute(entries.WRITE, keys, args)
        asked = [keys[1], keys[4]], [chance.choice([0.5, 1.0, 2.0]), chance.randint(1, 4)]
        assert numbers(due(*asked)) == numbers(model.execute(entries.DUE, *asked))
        for bucket in (1, 2):
            mirrored = entries.mirrored_key(bucket)
            assert redis_client.exists(mirrored) == model.exists(mirrored)
        for client in (redis_client, model):
            client.zrem(entries.schedule_key(1), entries.prefix(1) + "a")


def numbers(answer):
    """With the scores as numbers, which each writes in its own way."""
    return [[members, coming and float(coming)] for members, coming in answer]


def set_string(client, key, value):
    if isinstance(client, RedisModel):
        client.strings[key] = value, float("inf")
    else:
        client.set(key, value)


class Now(Tables):
    """The model on this machine's clock, which is PostgreSQL's too."""

    def now(self):
        return datetime.now(UTC)


class Both:
    """A transaction on PostgreSQL and one of the model, which are given the same statements."""

    def __init__(self, history, connection, *, alone):
        self.history = history
        self.tables = history.tables
        self.connection = connection
        self.alone = alone
        self.real = connection.begin()
        self.model = Transaction(alone=alone)
        connection.execute(text("SET LOCAL lock_timeout = '30ms'"))

    def execute(self, statement, given):
        answer, expected = self._ask(statement, given), self._expect(statement, given)
        assert comparable(answer) == comparable(expected), (str(statement), given)
        if answer == BLOCKED:
            self.history.waited += 1
            self.end(keep=False)
            return []
        if self.alone:
            self.real.commit()
        return answer

    def end(self, *, keep):
        if keep:
            self.real.commit()
            self.tables.commit(self.model, lambda _: None)
        else:
            self.real.rollback()
            self.tables.abort(self.model)

    @property
    def is_open(self):
        return self.real.is_active

    def _ask(self, statement, given):
        try:
            result = self.connection.execute(statement, given)
        except DBAPIError as exc:
            if isinstance(exc.orig, psycopg.errors.LockNotAvailable):
                return BLOCKED
            raise
        return result.all() if result.returns_rows else []

    def _expect(self, statement, given):
        answers = []
        self.tables.perform(self.model, lambda: self.tables.statement(self.model, statement, given), answers.append)
        self.tables.world.run(0.01)
        return answers[0] if answers else BLOCKED


def comparable(rows):
    """Rows in one order, without the clock that some of them have."""
    if rows == BLOCKED:
        return rows
    return sorted(repr([value for name, value in zip(names(row), row, strict=True) if name != "now"]) for row in rows)


def names(row):
    return getattr(row, "_fields", range(len(row)))


@pytest.fixture
def registered(database, fields):
    """Tasks of a few buckets, each due at a time of its own."""
    with db.transaction() as session:
        made = [tasks.create(session, db.now(session), fields()) for _ in range(TASKS)]
        for number, task in enumerate(made):
            task.bucket, task.next_run_at = number % 3, SLOT + timedelta(seconds=number)
    return made


@pytest.mark.parametrize("seed", range(8))
def test_the_model_of_postgresql_answers_as_this_one_does(registered, seed):
    """Transactions that overlap, of the very statements that fire, mirror and send."""
    history = History(registered, random.Random(seed), Now)
    history.go()
    assert history.passed_over
    assert history.tables.runs


def test_waiting_is_among_what_is_compared(registered):
    history = History(registered, random.Random(1), Now)
    history.go(300)
    assert history.waited


@pytest.mark.parametrize("wall", ["unique", "locks"])
def test_a_model_that_lacks_a_wall_is_found_out(registered, wall):
    history = History(registered, random.Random(1), type("Broken", (Now,), {wall: False}))
    with pytest.raises(AssertionError):
        history.go(300)


class History:
    def __init__(self, registered, chance, kind):
        self.chance = chance
        self.tables = kind(World(1))
        self.ids = [task.id for task in registered]
        self.passed_over = self.waited = 0
        for task in registered:
            columns = {column.key: getattr(task, column.key) for column in Task.__table__.columns}
            self.tables.register(SimpleNamespace(**columns | {"state": str(task.state)}))

    def go(self, count=60):
        """Each connection has a transaction, one statement of which is done at a time."""
        with ExitStack() as stack:
            connections = [stack.enter_context(db.engines().usual.connect()) for _ in range(3)]
            self._go(connections, count)

    def _go(self, connections, count):
        steps = {connection: iter(()) for connection in connections}
        for _ in range(count):
            connection = self.chance.choice(connections)
            if next(steps[connection], None) is None:
                steps[connection] = self.transaction(connection)
                next(steps[connection], None)
        for step in steps.values():
            for _ in step:
                pass

    def transaction(self, connection):
        """A generator of what one does: it yields between two statements."""
        kind = self.chance.choice([self.fire, self.fire, self.fire_overdue, self.mirror, self.rebuild, self.send])
        return kind(lambda *, alone=False: Both(self, connection, alone=alone))

    def fire(self, begin):
        asked = [*self.some(self.ids), UUID(int=1)]
        both = begin()
        rows = both.execute(dispatch._LOCK, {"task_ids": asked})
        self.passed_over += len(rows) < len(asked) - 1
        yield True
        yield from self.record(both, [row.id for row in rows])

    def fire_overdue(self, begin):
        both = begin()
        until, limit = SLOT + timedelta(seconds=self.chance.randint(-1, TASKS)), self.chance.randint(1, TASKS)
        locked = [row[0] for row in both.execute(dispatch._LOCK_OVERDUE, {"until": until, "limit": limit})]
        yield True
        yield from self.record(both, locked)

    def record(self, both, locked):
        """What follows once tasks are locked; now and then also of some that are not, as a backfill does it."""
        both.execute(runs._OPEN_TASKS, db.arrays("asked", id=self.some(self.ids)))
        both.execute(dispatch._THERE, {"task_ids": [UUID(int=1), *self.some(self.ids)]})
        yield True
        new = [(task_id, SLOT + timedelta(seconds=self.chance.randrange(3))) for task_id in self.some(self.ids)]
        # none of them grows old enough to be sent again while this goes on
        at = datetime.now(UTC) + timedelta(seconds=self.chance.choice([3600, -60]))
        both.execute(runs._RECORD, self.given(new) | {"at": at})
        yield both.is_open
        if both.is_open and locked:
            both.execute(dispatch._ADVANCE, self.after(locked))
            yield True
            both.execute(dispatch._MIRROR_AGAIN, {"task_ids": self.some(locked)})
            yield True
        if both.is_open:
            both.end(keep=self.chance.random() < 0.8)

    def mirror(self, begin):
        rows = begin(alone=True).execute(mirror._CHANGED, db.arrays("held", bucket=[0, 2]) | {"share": 2})
        yield True
        done = db.arrays(
            "done", id=[row.id for row in rows], version=[row.version + self.chance.choice([0, 0, 1]) for row in rows]
        )
        begin(alone=True).execute(mirror._MARK_MIRRORED, done)

    def rebuild(self, begin):
        at, task_id = self.chance.choice([mirror.BEGINNING, (SLOT + timedelta(seconds=2), self.ids[2])])
        begin(alone=True).execute(
            mirror._REBUILD,
            {"buckets": [0, 1], "after_at": at, "after_id": task_id} | {"limit": self.chance.randint(1, 4)},
        )
        yield True

    def send(self, begin):
        both = begin()
        both.execute(outbox._LOCK_PENDING, {"limit": 1000})  # those of one firing have no order
        yield True
        if both.is_open:
            both.end(keep=True)
        waiting = [run for run in self.tables.runs.values() if run.state == "pending"]
        tickets = [Ticket(task=run.task_id, run=run.id, slot=run.slot, attempt=1) for run in self.some(waiting)]
        if tickets:
            nothing = [None] * len(tickets)
            begin(alone=True).execute(runs._MARK_QUEUED, keys.given(tickets, sent_at=nothing, pack=nothing))

    def some(self, things):
        return self.chance.sample(things, self.chance.randint(min(1, len(things)), len(things)))

    def given(self, new):
        return db.arrays(
            "given",
            id=(runs.identify(*slot) for slot in new),
            task_id=(task_id for task_id, _ in new),
            slot=(slot for _, slot in new),
            trigger=["schedule"] * len(new),
            missed=[0] * len(new),
            skipped=(self.chance.choice([None, None, "overlap"]) for _ in new),
            held=[False] * len(new),
            args=[None] * len(new),
            kwargs=[None] * len(new),
        )

    def after(self, locked):
        count = len(locked)
        coming = [SLOT + timedelta(seconds=10, microseconds=self.chance.randrange(10**6)) for _ in locked]
        return db.arrays(
            "after",
            id=locked,
            next_run_at=coming,
            last_run_at=[SLOT] * count,
            run_count=[1] * count,
            state=[TaskState.ACTIVE.value] * count,
        )
