"""A pack in a worker: in this process, with a real PostgreSQL, from both of its sides."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery.exceptions import Ignore
from firing import fire
from kombu.message import Message as Delivery
from kombu.serialization import dumps
from sqlalchemy import select, update

from app import attempts, db, dispatch, messages, outbox, packs, runs, tasks
from app.broker import celery_app
from app.messages import Pack
from app.models import Run, Target
from app.states import Reason, RunState
from workers import durations, execution, heartbeat, journal
from workers import packs as work_packs
from workers.journal import Line
from workers.targets import debug  # noqa: F401 - registers debug.echo

pytestmark = pytest.mark.usefixtures("database")
WORKER = "w@h"
NO_BACKOFF = {"backoff": timedelta(0), "backoff_max": timedelta(0), "jitter": False}


@celery_app.task(name="test.each", bind=True)
def each(self, how=None, seconds=0):
    """Does as it is told."""
    if how == "fail":
        raise ValueError(self.request.id)
    if how == "exit":
        sys.exit(3)
    if how == "large":
        return "x" * 60_000
    time.sleep(seconds)
    return self.request.id


@pytest.fixture(autouse=True)
def keep_the_signals():
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGALRM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    execution._soft_limit.pid = None


@pytest.fixture
def packed(fields, postbox):
    """Fires one task per given kwargs and returns their runs' messages as one pack."""

    def make(*given, **changed):
        with db.transaction() as session:
            offered = {"queue": "default", "signature": "", "documentation": "", "last_seen_at": db.now(session)}
            session.merge(Target(name="test.each", **offered))
        with db.transaction() as session:
            now = db.now(session)
            items = [fields(target="test.each", kwargs=kwargs, schedule={"type": "now"}, **changed) for kwargs in given]
            made = tasks.create_many(session, now, items)
        fire(postbox.publish, [task.id for task in made])
        order = {task.id: number for number, task in enumerate(made)}
        return Pack.of(sorted(postbox.sent, key=lambda message: order[message.ticket.task]))

    return make


def reread(pack):
    with db.transaction() as session:
        found = session.scalars(select(Run).where(Run.id.in_([message.id for message in pack.messages])))
        by_id = {run.id: run for run in found}
    return [by_id[message.id] for message in pack.messages]


def states(pack):
    return [run.state for run in reread(pack)]


def request(pack):
    """The pack as the worker's main process has it."""
    made = celery_app.amqp.as_task_v2(str(pack.id), messages.PACK, [pack.encode()])
    content_type, encoding, body = dumps(made.body, serializer="json")
    delivery = Delivery(body=body, headers=made.headers, content_type=content_type, content_encoding=encoding)
    delivery.accept = {"application/json"}
    made = work_packs.PackRequest(delivery, app=celery_app, hostname=WORKER)
    made.worker_pid = os.getpid()
    return made


@contextmanager
def in_hand(pack, position, lines=()):
    """A child that claimed the pack and is at a position, with outcomes that it has not recorded."""
    working = work_packs.Working(pack, WORKER)
    working.claim()
    working.page.open(pack.id, working.claimed, working.claimed_at)
    for line in lines:
        assert working.page.add(Line(started_at=working.claimed_at, finished_at=working.claimed_at, **line))
    if position >= 0:
        working.page.approach(position)
        working.page.begin(position, working.claimed_at)
    yield working
    working.page.close()


def clerk():
    """What was deferred, done."""
    while not heartbeat._deferred.empty():
        heartbeat._deferred.get()()


def test_each_run_of_a_pack_has_its_own_result_and_stamps(packed):
    pack = packed({}, {"seconds": 0.02}, {})
    work_packs.work(pack, WORKER)
    found = reread(pack)
    assert [run.result for run in found] == [str(run.id) for run in found]
    assert {(run.state, run.worker, run.attempt) for run in found} == {(RunState.SUCCEEDED, WORKER, 1)}
    stamps = [
        (run.fired_at, run.published_at, run.started_at, run.finished_at, run.attempt_started_at) for run in found
    ]
    assert all(list(each[:4]) == sorted(each[:4]) and each[4] == each[2] for each in stamps)
    assert stamps[1][3] <= stamps[2][2]
    assert stamps[1][3] - stamps[1][2] >= timedelta(seconds=0.02)


def test_a_run_that_fails_touches_no_other(packed):
    pack = packed({}, {"how": "fail"}, {})
    work_packs.work(pack, WORKER)
    first, failed, last = reread(pack)
    assert (first.state, failed.state, last.state) == ("succeeded", "failed", "succeeded")
    assert (failed.reason, failed.error["type"], failed.error["message"]) == ("error", "ValueError", str(failed.id))
    assert failed.started_at is not None


def test_a_failed_run_is_tried_again_alone(packed, postbox):
    pack = packed({"how": "fail"}, {}, retry={"max_attempts": 2, **NO_BACKOFF})
    work_packs.work(pack, WORKER)
    assert states(pack) == ["retrying", "succeeded"]
    with db.transaction() as session:
        [again] = outbox.take_retries(session)
    assert again.ticket.attempt == 2
    assert packs.pack([again] * 50, packs.Pace(durations={"test.each": 0.001}, processes={})) == [again] * 50


def test_a_pack_delivered_twice_is_worked_once(packed):
    pack = packed({}, {})
    work_packs.work(pack, WORKER)
    before = [run.finished_at for run in reread(pack)]
    with pytest.raises(Ignore):
        work_packs.work(pack, "other@h")
    assert [run.finished_at for run in reread(pack)] == before


def test_a_run_that_was_cancelled_is_not_called(packed):
    pack = packed({}, {"how": "fail"}, {})
    with db.transaction() as session:
        runs.cancel(session, db.now(session), pack.messages[1].id)
    work_packs.work(pack, WORKER)
    assert states(pack) == ["succeeded", "cancelled", "succeeded"]


def test_a_run_over_its_limit_times_out_by_itself(packed, monkeypatch):
    monkeypatch.setattr(messages, "BEGIN_WITHIN", timedelta(minutes=1))
    pack = packed({}, {"seconds": 30}, {}, timeout=timedelta(seconds=1))
    began = time.monotonic()
    work_packs.work(pack, WORKER)
    assert time.monotonic() - began < 20
    assert states(pack) == ["succeeded", "failed", "succeeded"]
    assert reread(pack)[1].reason == Reason.TIMEOUT


def test_a_pack_of_which_many_fail_gives_the_rest_back(packed, monkeypatch):
    """Each failure is recorded by itself: its worker would take the pack for one that hangs."""
    monkeypatch.setattr(work_packs, "FAILURES", 2)
    pack = packed({"how": "fail"}, {}, {"how": "fail"}, {}, {"how": "fail"})
    work_packs.work(pack, WORKER)
    assert states(pack) == ["failed", "succeeded", "failed", "pending", "pending"]


def test_what_cannot_begin_in_time_is_given_back_and_sent_again(packed, postbox):
    pack = packed({"seconds": 2.1}, {}, {})
    work_packs.work(pack, WORKER)
    assert states(pack) == ["succeeded", "pending", "pending"]
    assert {run.attempt for run in reread(pack)} == {1}
    with db.transaction() as session:
        session.execute(update(Run).values(published_at=Run.published_at - outbox.SENDING))
        again = outbox.take_pending(session)
    assert sorted(message.id for message in again) == sorted(message.id for message in pack.messages[1:])
    work_packs.work(Pack.of(again), WORKER)
    assert states(pack) == ["succeeded"] * 3


def test_a_target_that_is_not_there_is_rejected(packed, monkeypatch):
    pack = packed({}, {})
    monkeypatch.delitem(celery_app.tasks, "test.each")
    work_packs.work(pack, WORKER)
    assert {(run.state, run.reason) for run in reread(pack)} == {("failed", "rejected")}


def test_outcomes_that_no_page_can_hold_are_recorded_as_they_come(packed):
    pack = packed(*[{"how": "large"}] * 5)
    work_packs.work(pack, WORKER)
    assert [len(run.result) for run in reread(pack)] == [60_000] * 5


def test_a_child_that_is_killed_takes_only_the_run_that_it_was_at(packed):
    pack = packed({}, {}, {}, {}, {})
    done = [
        {"position": 0, "result": '"kept"'},
        {"position": 1, "reason": "error", "error": {"type": "E", "message": "kept too", "traceback": None}},
    ]
    with in_hand(pack, 2, done):
        request(pack)._record(Reason.LOST, attempts.LOST)
    clerk()  # after the child's page is gone: what it said was read before
    first, second, killed, *rest = reread(pack)
    assert (first.state, first.result) == ("succeeded", "kept")
    assert (second.state, second.error["message"]) == ("failed", "kept too")
    assert (killed.state, killed.reason) == ("failed", "lost")
    assert killed.started_at is not None
    assert [run.state for run in rest] == ["pending", "pending"]


def test_the_heartbeat_of_a_run_that_hangs_is_renewed_and_its_neighbours_are_let_go(packed, monkeypatch):
    monkeypatch.setattr(messages, "BEGIN_WITHIN", timedelta(seconds=-1))  # as if the pack had been claimed long ago
    pack = packed({}, {}, {})
    with in_hand(pack, 1, [{"position": 0, "result": "1"}]) as working:
        looking = request(pack)
        looking.look_after()
        [ticket] = looking.in_hand()
        assert ticket == pack.messages[1].ticket
        assert states(pack) == ["succeeded", "running", "pending"]
        assert reread(pack)[1].started_at is not None
        # the child wakes: what it records was recorded, and what it would begin is not its own any more
        assert working.run([2]) == 0
    assert states(pack) == ["succeeded", "running", "pending"]


def test_a_run_that_a_child_was_about_to_begin_counts_as_not_begun(packed, monkeypatch):
    monkeypatch.setattr(messages, "BEGIN_WITHIN", timedelta(seconds=-1))
    pack = packed({}, {}, {})
    with in_hand(pack, 0) as working:
        assert working.run([1, 2]) == 0  # there was no time for the second: the page says that it was next
        request(pack).look_after()
        assert request(pack).in_hand() == []
        assert {run.attempt_started_at for run in reread(pack)} == {None}
        working.give_back([1, 2])
    assert states(pack) == ["running", "pending", "pending"]


def test_a_child_that_dies_before_it_begins_a_run_fails_none(packed):
    pack = packed({}, {}, {})
    with in_hand(pack, 0, [{"position": 0, "result": "1"}]) as working:
        working.page.approach(1)
        request(pack)._record(Reason.LOST, attempts.LOST)
    clerk()
    assert states(pack) == ["succeeded", "pending", "pending"]


def test_a_target_that_exits_fails_and_ends_nothing(packed):
    pack = packed({}, {"how": "exit"}, {})
    work_packs.work(pack, WORKER)
    assert states(pack) == ["succeeded", "failed", "succeeded"]
    assert reread(pack)[1].error["type"] == "SystemExit"


def test_what_was_given_back_and_claimed_by_another_is_not_given_back_again(packed):
    pack = packed({}, {})
    with in_hand(pack, 0) as working:
        working.give_back([1])
        again = Pack.of(pack.messages[1:])
        with in_hand(again, 0):
            working.give_back([1])
            assert states(pack) == ["running", "running"]


def test_a_beat_that_looks_late_does_not_take_what_was_given_back_for_a_message_that_waits(packed):
    """A worker made one pack of messages that had come one by one: for their beat each is the first of its own."""
    pack = packed({}, {})
    with in_hand(pack, 0) as working:
        working.give_back([1])
        dispatch.mark_unclaimed(pack.messages)
        assert states(pack) == ["running", "pending"]


def test_a_run_of_a_dead_worker_that_may_never_have_begun_is_tried_though_one_attempt_is_allowed(packed):
    pack = packed({}, {})
    with in_hand(pack, 0):
        request(pack).look_after()  # the first is known to have begun
    with db.transaction() as session:
        session.execute(update(Run).values(heartbeat_at=Run.heartbeat_at - attempts.LOST_AFTER * 2))
        assert attempts.rescue_lost(session) == (1, 1)
    assert states(pack) == ["failed", "retrying"]
    with pytest.raises(Ignore):
        work_packs.work(pack, WORKER)  # the old attempt is fenced out


def test_a_superseded_outcome_is_refused(packed):
    pack = packed({}, {})
    with in_hand(pack, 1) as working:
        with db.transaction() as session:
            session.execute(update(Run).where(Run.id == pack.messages[0].id).values(attempt=2))
        stamps = {"started_at": working.claimed_at, "finished_at": working.claimed_at}
        working.ended = [Line(position=0, result="1", **stamps), Line(position=1, result="2", **stamps)]
        working.record()
    assert states(pack) == ["running", "succeeded"]


def test_a_page_that_changes_while_it_is_read_is_not_believed(packed):
    pack = packed({}, {})
    with in_hand(pack, 1, [{"position": 0, "result": "1"}]) as working:
        assert len(journal.read(pack.id, os.getpid()).lines) == 1
        working.page.clear()
        assert journal.read(pack.id, os.getpid()).lines == []
    assert journal.read(pack.id, os.getpid()) is None


def test_a_target_that_becomes_slow_is_known_at_once_and_forgotten_slowly(database):
    def known():
        packs._Known.until = 0
        return packs.pace().durations["debug.echo"]

    for seconds, expected in [(0.001, 0.001), (0.1, 0.1), (0.001, 0.0901), (0.5, 0.5)]:
        durations.tell({"debug.echo": seconds})
        assert known() == pytest.approx(expected)


def test_what_a_child_notes_reaches_its_worker_once(monkeypatch):
    monkeypatch.setattr(durations, "_seen", durations._Seen())
    durations.collect()
    monkeypatch.setattr(durations, "WRITE_EVERY", -1.0)
    durations.note("debug.echo", 0.2)
    durations.note("debug.echo", 0.1)
    durations.note("test.each", 0.3)
    assert durations.collect() == {"debug.echo": pytest.approx(0.15), "test.each": 0.3}
    assert durations.collect() == {}


def test_a_target_that_declares_it_is_never_packed(monkeypatch):
    monkeypatch.setattr(each, "packable", False, raising=False)
    monkeypatch.setattr(durations, "_seen", durations._Seen())
    durations.collect()
    durations.note("test.each", 0.1)
    assert durations.collect() == {}


def test_a_burst_of_a_known_target_travels_in_packs(fields, postbox):
    with db.transaction() as session:
        session.execute(update(Target).values(duration=timedelta(milliseconds=1)))
    packs._Known.until = 0
    with db.transaction() as session:
        made = tasks.create_many(session, db.now(session), [fields(schedule={"type": "now"}) for _ in range(100)])
    fire(postbox.publish, [task.id for task in made])
    assert {type(parcel) for parcel in postbox.parcels} == {Pack}
    with db.transaction() as session:
        assert set(session.scalars(select(Run.state))) == {RunState.QUEUED}
    for parcel in postbox.parcels:
        work_packs.work(parcel, WORKER)
    with db.transaction() as session:
        assert set(session.scalars(select(Run.state))) == {RunState.SUCCEEDED}


def test_only_packs_that_nobody_has_claimed_are_marked(packed):
    messages = packed({}, {}, {}, {}).messages
    claimed, waiting = Pack.of(messages[:2]), Pack.of(messages[2:])
    with db.transaction() as session:
        session.execute(update(Run).values(state=RunState.PENDING, published_at=None))
    work_packs.work(claimed, WORKER)
    dispatch.mark_unclaimed([claimed, waiting])
    with db.transaction() as session:
        found = {run.id: (run.state, run.pack_id) for run in session.scalars(select(Run))}
    assert {found[message.id] for message in claimed.messages} == {(RunState.SUCCEEDED, None)}
    assert {found[message.id] for message in waiting.messages} == {(RunState.QUEUED, waiting.id)}


def test_a_pack_that_vanished_counts_as_one_message_and_is_sent_again_whole(fields, postbox):
    with db.transaction() as session:
        session.execute(update(Target).values(duration=timedelta(milliseconds=1)))
    packs._Known.until = 0
    with db.transaction() as session:
        made = tasks.create_many(session, db.now(session), [fields(schedule={"type": "now"}) for _ in range(60)])
    fire(postbox.publish, [task.id for task in made])
    sent = len(postbox.parcels)
    assert 1 < sent < 60
    with db.transaction() as session:
        session.execute(update(Run).values(published_at=Run.published_at - outbox.SENDING))
        assert outbox.count_queued(session) == {"default": sent}
        assert len(outbox.take_vanished(session, "default", sent - 1)) == len(postbox.parcels[0].messages)
        assert outbox.count_queued(session) == {"default": sent - 1}


def test_who_reads_a_page_while_it_is_written_sees_what_was_there_before():
    """A child is stopped at any moment, and its worker looks meanwhile."""
    pack, at = uuid4(), datetime(2026, 6, 1, 12, tzinfo=UTC)
    page = journal.own()
    page.open(pack, 1.0, at)
    seen = []

    class Looking:
        """A number at whose writing somebody looks."""

        def __init__(self, number):
            self.number = number

        def __index__(self):
            reading = journal.read(pack, os.getpid())
            seen.append((reading.next, reading.begun, reading.began_at))
            return self.number

    try:
        page.approach(Looking(7))
        page.begin(Looking(7), at + timedelta(seconds=1))
        page.approach(Looking(8))
        page.begin(Looking(8), at + timedelta(seconds=2))
    finally:
        page.close()
    first = at + timedelta(seconds=1)
    assert seen == [(-1, -1, at), (7, -1, at), (7, 7, first), (8, 7, first)]
