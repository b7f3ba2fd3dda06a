"""The checker can fail: each of these goes wrong on purpose, and a control that passes as valid fails here.

Four are Punctual's own code with one part of it missing; two are stock Celery with stock RedBeat.
"""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from kombu import Connection
from stores import GIVEN, ROOT, need, new_database, poll

from drill import checker, ledger, links, oracle, stock, witness
from drill.checker import Offence
from drill.history import Answer, Call, Deed, History

TASKS = 5
"""How many tasks each control has."""


def now():
    return datetime.now(UTC)


def registered(name, at, asked_at, answered_at=None):
    """The history of a one-time task."""
    return Call(
        task=name,
        deed=Deed.REGISTER,
        asked_at=asked_at,
        answered_at=answered_at or now(),
        answer=Answer.ACKNOWLEDGED,
        schedule={"type": "once", "at": at.isoformat()},
    )


class Courier:
    """Stands where the broker and a worker stand: what is published is claimed, called and recorded here.

    `drops` and `holds` say how many messages are lost on the way, and how many are kept back for later.
    """

    def __init__(self, drops=0, holds=0):
        self.drops = drops
        self.held = []
        self.holds = holds

    def publish(self, batch):
        for message in batch:
            if self.drops:
                self.drops -= 1
            elif self.holds:
                self.holds -= 1
                self.held.append(message)
            else:
                self.deliver(message)
        return list(batch)

    def deliver(self, message):
        from workers import execution  # noqa: PLC0415 - only after the environment stands
        from workers.targets import http  # noqa: PLC0415

        def call():
            http.request.push_request(id=str(message.ticket.run))
            try:
                return http.request.run(**message.kwargs)
            finally:
                http.request.pop_request()

        execution.execute(message.ticket, "control", "http.request", call)


class Scene:
    """A few one-time tasks, registered, fired and executed by Punctual's own code, and then judged."""

    def __init__(self, database, seen, fields):
        self.database = database
        self.seen = seen
        self.fields = fields
        self.prefix = f"control-{uuid4().hex[:8]}-"
        self.calls = []
        self.ids = []

    def register(self, at):
        from app import db, tasks  # noqa: PLC0415

        for number in range(TASKS):
            name, asked_at = f"{self.prefix}{number}", now()
            kwargs = {"url": self.seen.url, "method": "POST", "json": {"task": name}}
            schedule = {"type": "once", "at": at.isoformat()}
            given = self.fields(name=name, target="http.request", kwargs=kwargs, schedule=schedule)
            with db.transaction() as session:
                self.ids.append(tasks.create(session, db.now(session), given).id)
            self.calls.append(registered(name, at, asked_at))

    def fire(self, courier):
        from firing import fire  # noqa: PLC0415 - as above

        assert len(fire(courier.publish, self.ids).runs) == TASKS

    def verdict(self, until=None):
        until = until or now()
        starts = self.seen.starts(self.prefix)
        rows = ledger.read(self.database, self.prefix)
        slots = oracle.slots(History(calls=tuple(self.calls)), until + timedelta(minutes=1))
        return checker.check(slots, rows, starts, until=until)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    with witness.running(tmp_path_factory.mktemp("controls") / "starts.jsonl") as running:
        yield running


@pytest.fixture(scope="module")
def own_database(template):
    """A database of the controls' own, which Punctual's code in this process uses meanwhile."""
    import workers.targets.http  # noqa: F401, PLC0415 - takes seconds, which no slot is to wait for

    with new_database(f"punctual_controls_{os.getpid()}", template) as url, pytest.MonkeyPatch.context() as patch:
        _forget()
        patch.setenv("DATABASE_URL", url)
        patch.setenv("PUNCTUAL_HTTP_ALLOW_PRIVATE", "on")
        with psycopg.connect(plain(url)) as connection:
            connection.execute("INSERT INTO targets VALUES ('http.request', 'default', '(url)', 'Calls a URL.', now())")
        yield url
        _forget()


def _forget():
    """Settings and connections are made again at next use."""
    from app import db, settings  # noqa: PLC0415

    if db.engines.cache_info().currsize:
        db.engines().usual.dispose()
    for cached in (settings.load, db.engines):
        cached.cache_clear()


def plain(url):
    return url.replace("postgresql+psycopg://", "postgresql://")


@pytest.fixture
def scene(own_database, seen, fields):
    return Scene(own_database, seen, fields)


def test_without_a_fault_the_checker_finds_nothing(scene):
    scene.register(now())
    scene.fire(Courier())
    verdict = scene.verdict(until=now() + timedelta(seconds=11))  # all is over, so nothing is left to wait for
    assert verdict.offences == ()
    assert verdict.on_time == verdict.slots == TASKS


def test_a_dropped_message_is_reported_as_lost(scene):
    scene.register(now())
    scene.fire(Courier(drops=1))  # and no chore runs that would send it again
    verdict = scene.verdict(until=now() + timedelta(seconds=11))
    assert verdict.counts == {Offence.LOST: 1}
    assert "its run is queued" in verdict.offences[0]
    assert not verdict.valid


COPY = """
INSERT INTO runs (id, task_id, scheduled_for, task_name, target, queue, trigger, missed, state, attempt, fired_at)
SELECT gen_random_uuid(), task_id, scheduled_for, task_name, target, queue, trigger, missed, 'pending', 1,
       fired_at - interval '1 minute'
FROM runs WHERE task_name = %s
"""


def test_without_the_unique_constraint_a_slot_is_reported_as_recorded_and_executed_twice(scene, own_database):
    from app import db, dispatch, outbox  # noqa: PLC0415

    scene.register(now())
    scene.fire(Courier())
    with psycopg.connect(plain(own_database), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(COPY, [f"{scene.prefix}0"])
        connection.execute("ALTER TABLE runs DROP CONSTRAINT uq_runs_task_slot")
        connection.execute(COPY, [f"{scene.prefix}0"])
        with db.transaction() as session:
            batch = outbox.take_pending(session)
        dispatch.send(Courier().publish, batch)
        verdict = scene.verdict(until=now() + timedelta(seconds=11))
        connection.execute("DELETE FROM runs WHERE task_name = %s", [f"{scene.prefix}0"])
        connection.execute("ALTER TABLE runs ADD CONSTRAINT uq_runs_task_slot UNIQUE (task_id, scheduled_for)")
    assert verdict.counts == {Offence.RECORDED_TWICE: 1, Offence.EXECUTED_TWICE: 1}
    assert not verdict.valid


def test_a_delay_of_eleven_seconds_is_reported_as_late(scene):
    scene.register(now())
    courier = Courier(holds=1)
    scene.fire(courier)
    poll(lambda: now() > scene.calls[-1].answered_at + timedelta(seconds=11), within=20)
    for message in courier.held:
        courier.deliver(message)
    verdict = scene.verdict()
    assert verdict.counts == {Offence.LATE: 1}
    assert 11 <= verdict.worst < 20
    assert not verdict.valid


def test_a_start_before_its_time_is_reported_as_early(scene):
    from app import db, dispatch  # noqa: PLC0415

    scene.register(now() + timedelta(seconds=30))
    with db.transaction() as session:  # as a clock would have it that is half a minute ahead
        fired = dispatch.record_due(session, now() + timedelta(seconds=31), scene.ids)
    dispatch.send(Courier().publish, fired.messages()[:1])
    verdict = scene.verdict()
    assert verdict.counts == {Offence.EARLY: 1}
    assert not verdict.valid


class Stock:
    """Stock Celery's worker and beats; the beats reach the broker over a link. Started early, as they take seconds.

    Two of the beats, of which one leads and one stands by, share a Redis database; a third has one for itself.
    """

    def __init__(self, logs):
        self.logs = logs
        self.link, self.over_link = links.server(GIVEN["BROKER_URL"])
        self.shared, self.own = (urlsplit(GIVEN["REDIS_URL"])._replace(path=path).geturl() for path in ("/7", "/8"))
        self.processes = {}

    def start(self, name, broker, redis_url, *options):
        env = os.environ | {"STOCK_REDIS_URL": redis_url, "STOCK_BROKER_URL": broker}
        del env["BROKER_URL"]  # Celery's command line would take it before the app's own
        command = [sys.executable, "-m", "celery", "-A", "drill.stock", *options, "--loglevel=INFO"]
        with (self.logs / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)

    def start_all(self):
        self.empty()
        self.start("worker", GIVEN["BROKER_URL"], self.own, "worker", "--pool=solo", "--without-mingle")
        self.start("one", self.over_link, self.shared, "beat")
        self.start("other", self.over_link, self.shared, "beat")
        self.start("alone", self.over_link, self.own, "beat")

    def stop_all(self):
        for process in self.processes.values():
            process.kill()  # also one that is paused, or hangs in a broker that is away
        for process in self.processes.values():
            process.wait()
        self.link.close()
        self.empty()

    def empty(self):
        for url in (self.shared, self.own):
            with redis.Redis.from_url(url) as client:
                client.flushdb()
        with Connection(GIVEN["BROKER_URL"]) as connection:
            connection.default_channel.queue_delete("stock")

    def leader(self, *names):
        """Which of these beats leads, when one does and the others stand by."""
        poll(lambda: all(self.said(name, "beat: Starting") for name in names), within=30)
        return poll(
            lambda: next((self.processes[name] for name in names if self.said(name, "Acquired lock")), None), 30
        )

    def said(self, name, text):
        return text in (self.logs / f"{name}.log").read_text()

    def enter(self, redis_url, url, dues):
        """Entries, one per due time; returns the start of their names, and their history."""
        prefix, app = f"stock-{uuid4().hex[:8]}-", stock.make(None, redis_url)
        calls = []
        for number, due in enumerate(dues):
            asked_at = now()
            stock.enter(app, f"{prefix}{number}", url, due, every=3600)
            calls.append(registered(f"{prefix}{number}", due, asked_at))
        return prefix, History(calls=tuple(calls))


@pytest.fixture(scope="module", autouse=True)
def starting(tmp_path_factory):
    """Stock's processes, which start up while the first controls run; None where there is no RabbitMQ."""
    if not (GIVEN["BROKER_URL"] or "").startswith("amqp"):
        yield None
        return
    made = Stock(tmp_path_factory.mktemp("stock"))
    made.start_all()
    yield made
    made.stop_all()


@pytest.fixture
def stocked(starting):
    need("RabbitMQ: set BROKER_URL to an amqp:// address", there=starting)
    poll(lambda: starting.said("worker", " ready."), within=30)
    return starting


def judge(seen, prefix, history):
    until = now()
    slots = oracle.slots(history, until + timedelta(minutes=1))
    rows, starts = stock.ledger(slots, seen.starts(prefix))
    return checker.check(slots, rows, starts, until=until)


def ahead(seconds):
    return now().replace(microsecond=0) + timedelta(seconds=seconds)


def test_stock_redbeat_whose_leader_is_paused_is_reported_as_executing_twice(seen, stocked):
    count = 500
    leader = stocked.leader("one", "other")
    prefix, history = stocked.enter(stocked.shared, seen.url, [ahead(8)] * count)
    poll(lambda: seen.starts(prefix), within=30, every=0.005)
    leader.send_signal(signal.SIGSTOP)  # in the midst of its batch
    # its lock runs out, and the standby sends the rest; one may be in the leader's hands
    poll(lambda: len({start.task for start in seen.starts(prefix)}) >= count - 1, within=40)
    leader.send_signal(signal.SIGCONT)
    poll(lambda: len(seen.starts(prefix)) > count, within=30)
    poll(lambda: leader.poll() is not None, within=20)  # that is how stock ends once it sees that its lock is gone
    verdict = judge(seen, prefix, history)
    print(f"\nstock, a leader paused past its lock: {verdict.doubled} of {count} executed twice")
    assert verdict.counts[Offence.EXECUTED_TWICE] > 0
    assert not verdict.valid


def test_stock_redbeat_without_rabbitmq_is_reported_as_losing_slots(seen, stocked):
    stocked.leader("alone")
    first = ahead(1)
    prefix, history = stocked.enter(stocked.own, seen.url, [first + timedelta(seconds=n / 2) for n in range(24)])
    poll(lambda: seen.starts(prefix), within=10)
    with stocked.link.cut():
        poll(lambda: now() > first + timedelta(seconds=12), within=15)
    poll(lambda: now() > first + timedelta(seconds=22), within=15)
    verdict = judge(seen, prefix, history)
    print(f"\nstock, RabbitMQ away for 12 s: {verdict.lost} of {verdict.slots} lost, {verdict.late} late")
    assert verdict.lost > 0
    assert not verdict.valid
