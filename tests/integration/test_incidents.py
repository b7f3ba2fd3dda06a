"""Incidents: what opens one, that it is one, and what ends it. PostgreSQL is real, workers are played."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from firing import fire, summarise
from sqlalchemy import event, select, text, update

from app import attempts, db, dispatch, incidents, recoveries, runs, summaries, system, tasks
from app.incidents import Sign
from app.messages import Ticket
from app.models import Incident, Run, Task
from app.states import Reason, RunState, Trigger, Trouble

pytestmark = pytest.mark.usefixtures("database")

ERROR = {"type": "RuntimeError", "message": "no", "traceback": None}
MINUTE = timedelta(minutes=1)
LATE = timedelta(seconds=30)


@pytest.fixture
def task(create):
    return create()


def manual(task):
    """A run by hand that a worker has claimed; its ticket."""
    with db.transaction() as session:
        run = tasks.run(session, db.now(session), task.id, None, None)
    ticket = Ticket(task=task.id, run=run.id, slot=run.scheduled_for, attempt=1)
    assert runs.claim(ticket, "w@h")
    return ticket


def fail(ticket):
    with db.transaction() as session:
        return attempts.fail(session, ticket, Reason.ERROR, ERROR, 0.5, after=math.inf)


def report(task, kind=Trouble.FAILED):
    with db.transaction() as session:
        now = db.now(session)
        incidents.report(session, kind, [Sign(task_id=task.id, run_id=uuid4(), slot=now)])


def close():
    with db.transaction() as session:
        return recoveries.close(session)[1]


def found(**wanted):
    with db.transaction() as session:
        return list(session.scalars(select(Incident).filter_by(**wanted).order_by(Incident.opened_at)))


def age(by, **wanted):
    """Makes incidents older."""
    moved = {name: getattr(Incident, name) - by for name in ("opened_at", "last_at", "closed_at", "last_slot")}
    with db.transaction() as session:
        session.execute(update(Incident).filter_by(**wanted).values(moved))


def slot(task, before, started=None):
    """A scheduled run of a slot that lies so long back, and that started so much later."""
    with db.transaction() as session:
        now = db.now(session)
        run = runs.NewRun(id=uuid4(), task=task, slot=now - before, trigger=Trigger.SCHEDULE)
        runs.record(session, now, [run])
        summaries.reopen(session, [run.slot])  # as beats have it that were there when its hour began
        if started is not None:
            begun = {"started_at": run.slot + started, "state": "running"}
            session.execute(update(Run).where(Run.id == run.id).values(begun))
    return run


def look():
    """The chores that find late runs, as beats do one after the other."""
    summarise()
    with db.transaction() as session:
        return incidents.find_late(session, db.now(session))[1]


def test_runs_that_fail_at_once_are_one_incident_and_a_success_ends_it(task):
    both = [manual(task), manual(task)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(fail, both)) == [RunState.FAILED, RunState.FAILED]
    [incident] = found()
    assert (incident.kind, incident.count, incident.closed_at) == ("failed", 2, None)
    assert incident.run_id in {ticket.run for ticket in both}
    assert close() == 0
    assert runs.succeed(manual(task), None)
    assert close() == 1
    [incident] = found()
    assert (incident.ending, incident.untold) == ("well", True)


def test_a_success_before_the_failure_ends_nothing_though_its_slot_is_a_later_one(task):
    failing, succeeding = manual(task), manual(task)
    assert succeeding.slot > failing.slot
    runs.succeed(succeeding, None)
    fail(failing)
    assert close() == 0


def test_what_comes_back_soon_is_the_same_incident_and_is_over_only_when_it_stayed_well(task):
    fail(manual(task))
    runs.succeed(manual(task), None)
    assert close() == 1
    fail(manual(task))
    runs.succeed(manual(task), None)
    [incident] = found()
    assert (incident.closed_at, incident.reopened, incident.count, incident.untold) == (None, 1, 2, True)
    assert close() == 0
    age(incidents.QUIET)
    assert close() == 1
    age(incidents.QUIET)
    fail(manual(task))
    assert [each.reopened for each in found()] == [1, 0]


def test_two_that_see_trouble_come_back_at_once_open_one_incident(task):
    report(task)
    with db.transaction() as session:
        session.execute(update(Incident).values(closed_at=Incident.last_at, ending="well"))
    ready = threading.Barrier(2)

    def again(_):
        with db.transaction() as session:
            ready.wait(5)
            incidents.report(session, Trouble.FAILED, [Sign(task_id=task.id, slot=db.now(session))])

    with ThreadPoolExecutor() as pool:
        list(pool.map(again, range(2)))
    [incident] = found()
    assert (incident.count, incident.reopened, incident.closed_at) == (3, 1, None)


def is_waited():
    """Whether somebody waits for a row that another transaction has changed."""
    with db.transaction() as session:
        return session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))


def test_a_failure_while_its_incident_is_being_closed_is_not_lost(task, eventually):
    fail(manual(task))
    runs.succeed(manual(task), None)
    with ThreadPoolExecutor() as pool:
        with db.transaction() as session:
            assert recoveries.close(session)[1] == 1
            failing = pool.submit(fail, manual(task))
            eventually(is_waited, within=2.8)  # a lock is waited for for 3 s
        assert failing.result(10) == RunState.FAILED
    assert [each.closed_at is None for each in found()] == [False, True]


def test_what_is_being_reported_is_not_closed(task):
    fail(manual(task))
    ticket = manual(task)
    runs.succeed(manual(task), None)
    with db.transaction() as session:
        attempts.fail(session, ticket, Reason.ERROR, ERROR, 0.5, after=math.inf)
        assert close() == 0
    [incident] = found()
    assert (incident.count, incident.closed_at) == (2, None)


def test_what_is_reported_between_the_look_and_the_end_keeps_an_incident_open(task):
    fail(manual(task))
    runs.succeed(manual(task), None)
    late = [manual(task)]

    def fail_before(_connection, _cursor, statement, *_):
        if late and statement.startswith("UPDATE incidents"):
            with ThreadPoolExecutor() as pool:  # another connection's
                pool.submit(fail, late.pop()).result(10)

    event.listen(db.engines().usual, "before_cursor_execute", fail_before)
    try:
        assert close() == 0
    finally:
        event.remove(db.engines().usual, "before_cursor_execute", fail_before)
    [incident] = found()
    assert (incident.count, incident.closed_at) == (2, None)


def test_a_task_that_pauses_itself_is_told_of_until_it_is_resumed(create):
    task = create(pause_after_failures=1)
    fail(manual(task))
    [_, paused] = sorted(found(), key=lambda each: each.kind)
    assert (paused.kind, paused.note) == ("paused", "Paused by Punctual: its last run failed.")
    assert close() == 0
    with db.transaction() as session:
        tasks.resume(session, db.now(session), task.id, "now")
    assert close() == 1
    assert [each.kind for each in found(closed_at=None)] == ["failed"]


def test_a_task_that_is_set_aside_opens_an_incident_and_one_that_a_person_pauses_does_not(task, postbox):
    with db.transaction() as session:
        broken = {"schedule": {"type": "cron", "expression": "x", "timezone": "UTC"}}
        session.execute(update(Task).values(broken | {"next_run_at": db.now(session)}))
    fire(postbox.publish, [task.id])
    [incident] = found()
    assert (incident.kind, incident.run_id) == ("paused", None)
    assert incident.note.startswith("Paused by Punctual: its slots cannot be computed")


def test_a_pause_by_a_person_is_no_incident(task):
    with db.transaction() as session:
        tasks.pause(session, db.now(session), task.id, "the printer is away")
    assert found() == []


@pytest.mark.parametrize(("policy", "count"), [("latest", 4), ("none", 5)])
def test_missed_slots_are_one_incident_until_a_slot_is_fired_in_time(create, postbox, policy, count):
    task = create(catchup={"policy": policy, "window": None}, overlap="allow")
    ago = 5 * MINUTE + timedelta(seconds=20)
    with db.transaction() as session:
        now = db.now(session)
        anchor = {"type": "interval", "every": 60, "anchor": (now - ago).isoformat()}
        session.execute(update(Task).values(schedule=anchor, next_run_at=now - ago + MINUTE))
    fire(postbox.publish, [task.id])
    [incident] = found()
    assert (incident.kind, incident.count) == ("missed", count)
    assert close() == 0
    with db.transaction() as session:
        session.execute(update(Task).values(next_run_at=db.now(session)))
    dispatch.fire(postbox.publish, [task.id])
    assert close() == 1


def test_a_run_that_has_not_started_is_late_once_and_one_in_time_ends_it(task):
    late = slot(task, LATE)
    look()
    [incident] = found()
    assert (incident.kind, incident.run_id, incident.count) == ("late", late.id, 1)
    with db.transaction() as session:
        session.execute(update(Run).values(started_at=db.now(session), state="running"))
        session.execute(update(summaries.Summary).values(made_at=None))
    look()  # the same run, which has started by now
    assert [each.count for each in found()] == [1]
    assert close() == 0
    slot(task, timedelta(seconds=5), started=timedelta(seconds=1))
    assert close() == 1
    with db.transaction() as session:
        session.execute(update(summaries.Summary).values(made_at=None))
    look()
    assert len(found()) == 1  # it was told of, and is none of another incident


def test_runs_that_started_late_are_counted_and_those_in_time_and_of_a_backfill_are_not(create):
    late, in_time, filled = (create(name=name) for name in ("late", "in time", "filled"))
    for before in (LATE, 2 * LATE, 3 * LATE):
        slot(late, before, started=timedelta(seconds=11))
    slot(in_time, LATE, started=timedelta(seconds=9))
    with db.transaction() as session:
        now = db.now(session)
        tasks.backfill(session, now, filled.id, [now - LATE])
    while look():
        pass
    [incident] = found()
    assert (incident.task_name, incident.count) == ("late", 3)


def test_a_one_time_task_that_was_late_is_well_when_it_has_started(create):
    task = create(schedule={"type": "now"})
    run = slot(task, LATE)
    with db.transaction() as session:
        session.execute(update(Task).values(state="completed", next_run_at=None))
    look()
    assert close() == 0
    with db.transaction() as session:
        session.execute(update(Run).where(Run.id == run.id).values(started_at=db.now(session), state="running"))
    assert close() == 1


def test_an_incident_of_a_deleted_task_ends_and_is_not_told(task):
    fail(manual(task))
    with db.transaction() as session:
        tasks.delete(session, db.now(session), task.id)
    assert close() == 1
    [incident] = found()
    assert (incident.ending, incident.untold) == ("deleted", False)


def test_an_incident_that_nothing_can_end_is_over_after_a_day(create):
    task = create(schedule={"type": "now"})
    fail(manual(task))
    with db.transaction() as session:
        session.execute(update(Task).values(state="completed", next_run_at=None))
    assert close() == 0
    age(recoveries.OVER)
    assert close() == 1
    [incident] = found()
    assert (incident.ending, incident.untold) == ("over", False)


def test_a_system_task_that_fails_opens_no_incident(caplog):
    with db.transaction() as session:
        now = db.now(session)
        made = system.register(session, now, "punctual.canary.x", target="punctual.canary", schedule={"type": "now"})
        task = session.get_one(Task, made)
        run = runs.NewRun(id=uuid4(), task=task, slot=now, trigger=Trigger.MANUAL)
        runs.record(session, now, [run])
    ticket = Ticket(task=task.id, run=run.id, slot=run.slot, attempt=1)
    runs.claim(ticket, "w@h")
    assert fail(ticket) == RunState.FAILED
    report(task)
    assert found() == []
    assert "punctual.canary.x failed for good" in caplog.text


def test_a_run_in_time_asks_nothing_of_incidents(task, postbox, statements):
    with db.transaction() as session:
        session.execute(update(Task).values(next_run_at=db.now(session)))
    with statements() as seen:
        fire(postbox.publish, [task.id])
        [ticket] = [message.ticket for message in postbox.sent]
        runs.claim(ticket, "w@h")
        runs.succeed(ticket, None)
    assert seen
    assert [each for each in seen if "incidents" in each] == []


def test_beats_that_look_for_late_runs_at_once_count_them_once(task):
    slot(task, LATE)
    summarise()
    find = partial(db.transact, lambda session: incidents.find_late(session, db.now(session)))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: find(), range(4)))
    assert [each.count for each in found()] == [1]


def test_of_many_tasks_that_are_late_some_are_reported_at_a_time_and_a_slow_look_is_not_done_again(
    create, monkeypatch, statements
):
    monkeypatch.setattr(incidents, "WORK", -1)  # each turn is over before it began
    monkeypatch.setattr(incidents, "LATE", 2)
    for _ in range(3):
        slot(create(), LATE)
    turns = 0
    while look() and turns < 10:
        turns += 1
    assert len(found()) == 3
    assert turns < 10
    with statements() as seen:
        look()
    assert [each for each in seen if "array_agg" in each] == []


def test_open_ones_are_counted_and_old_ones_forgotten(create):
    one, other = create(), create()
    report(one)
    report(other)
    report(one, Trouble.MISSED)
    with db.transaction() as session:
        assert incidents.counts(session) == {"failed": 2, "late": 0, "missed": 1, "paused": 0}
        session.execute(update(Incident).where(Incident.kind == "missed").values(closed_at=db.now(session)))
    age(incidents.KEPT)
    with db.transaction() as session:
        assert incidents.forget(session, db.now(session)) == 1
    assert [each.kind for each in found()] == ["failed", "failed"]


def test_incidents_are_listed_newest_first_page_by_page_and_by_what_a_key_sees(client, app, create):
    mine, theirs = create(name="mine", labels={"team": "a"}), create(name="theirs")
    for task in (mine, theirs):
        report(task)
    report(mine, Trouble.LATE)
    with db.transaction() as session:
        session.execute(update(Incident).where(Incident.kind == "late").values(closed_at=db.now(session)))
    first = client.get("/api/v1/incidents?limit=2").json
    assert [(each["task_name"], each["kind"]) for each in first["items"]] == [("mine", "late"), ("theirs", "failed")]
    rest = client.get(f"/api/v1/incidents?after={first['next']}").json
    assert [each["task_name"] for each in rest["items"]] == ["mine"]
    assert (rest["items"][0]["closed_at"], rest["next"]) == (None, None)
    assert [each["kind"] for each in client.get("/api/v1/incidents?open=0").json["items"]] == ["late"]
    of_one = client.get(f"/api/v1/incidents?open=1&task_id={theirs.id}").json["items"]
    assert [each["task_id"] for each in of_one] == [str(theirs.id)]
    key = client.post("/api/v1/keys", json={"name": "a", "role": "viewer", "labels": {"team": "a"}}).json["key"]
    confined = app.test_client()
    confined.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    assert {each["task_name"] for each in confined.get("/api/v1/incidents").json["items"]} == {"mine"}
