"""Due tasks become runs, once, whoever fires them."""

import time
from datetime import timedelta
from threading import Barrier, Thread
from uuid import uuid4

import pytest
from firing import fire
from sqlalchemy import func, select, update

from app import attempts, db, dispatch, outbox, packs, policies, runs, tasks
from app.messages import Ticket
from app.models import Run, Task
from app.states import Reason, RunState, TaskState

pytestmark = pytest.mark.usefixtures("database")


def now():
    with db.transaction() as session:
        return db.now(session)


def make(fields, at=None, **changed):
    """Registers a task as if it had been at `at`."""
    with db.transaction() as session:
        return tasks.create(session, at or now(), fields(**changed))


def make_due(task, ago=timedelta(0)):
    """Sets the task's next slot to `ago` before now, and returns it."""
    slot = now() - ago
    with db.transaction() as session:
        session.execute(update(Task).where(Task.id == task.id).values(next_run_at=slot))
    return slot


def every(seconds, ago):
    """An interval whose first slot lies `ago` seconds back."""
    anchor = now() - timedelta(seconds=ago)
    return {"type": "interval", "every": seconds, "anchor": anchor.isoformat()}


def recorded(task):
    with db.transaction() as session:
        found = session.scalars(select(Run).where(Run.task_id == task.id).order_by(Run.scheduled_for))
        return list(found)


def reread(task):
    with db.transaction() as session:
        return session.get_one(Task, task.id)


def test_a_due_task_is_recorded_sent_and_queued(fields, postbox):
    task = make(fields, kwargs={"n": 1}, schedule={"type": "now"})
    fire(postbox.publish, [task.id])
    [run] = recorded(task)
    assert (run.state, run.trigger, run.attempt, run.missed) == (RunState.QUEUED, "schedule", 1, 0)
    assert run.id == runs.identify(task.id, run.scheduled_for)
    [message] = postbox.sent
    assert (message.target, message.kwargs) == ("debug.echo", {"n": 1})
    assert message.ticket == Ticket(task=task.id, run=run.id, slot=run.scheduled_for, attempt=1)


def test_a_task_that_is_not_due_is_not_fired_and_its_next_slot_is_told(fields, postbox):
    task = make(fields, schedule={"type": "once", "at": (now() + timedelta(hours=1)).isoformat()})
    fired = fire(postbox.publish, [task.id])
    assert not postbox.sent
    assert fired.next_run_at == {task.id: task.next_run_at}


def test_firing_again_adds_nothing(fields, postbox):
    task = make(fields, schedule={"type": "now"})
    for _ in range(3):
        fire(postbox.publish, [task.id])
    assert len(recorded(task)) == len(postbox.sent) == 1


def test_a_slot_that_is_recorded_already_is_not_recorded_twice(fields, postbox):
    task = make(fields, schedule=every(60, ago=5))
    slot = make_due(task)
    with db.transaction() as session:
        new = runs.NewRun(id=runs.identify(task.id, slot), task=task, slot=slot, trigger="backfill")
        runs.record(session, slot, [new])
    fire(postbox.publish, [task.id])
    assert len(recorded(task)) == 1
    assert not postbox.sent


def test_two_firing_at_once_record_each_slot_once(fields, postbox):
    made = [make(fields, schedule={"type": "now"}) for _ in range(50)]
    ids = [task.id for task in made]
    barrier = Barrier(2)

    def repeatedly():
        barrier.wait()
        for _ in range(5):
            fire(postbox.publish, ids)

    threads = [Thread(target=repeatedly) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(postbox.runs) == sorted(recorded(task)[0].id for task in made)
    assert all(len(recorded(task)) == 1 for task in made)


def test_a_run_that_the_broker_did_not_take_stays_pending_and_is_sent_again(fields, postbox):
    task = make(fields, schedule={"type": "now"})
    postbox.takes = False
    fire(postbox.publish, [task.id])
    [run] = recorded(task)
    assert run.state == RunState.PENDING
    with db.transaction() as session:
        assert outbox.take_pending(session) == []  # it may still be on its way
        session.execute(update(Run).values(fired_at=Run.fired_at - outbox.SENDING))
        [message] = outbox.take_pending(session)
    with db.transaction() as session:
        assert outbox.take_pending(session) == []  # now someone is sending it
    postbox.takes = True
    dispatch.send(postbox.publish, [message])
    assert recorded(task)[0].state == RunState.QUEUED


def test_a_one_time_task_is_completed_when_it_is_fired(fields, postbox):
    task = make(fields, schedule={"type": "now"})
    fired = fire(postbox.publish, [task.id])
    assert fired.next_run_at == {task.id: None}
    task = reread(task)
    assert (task.state, task.next_run_at, task.run_count) == (TaskState.COMPLETED, None, 1)


def test_a_recurring_task_goes_on_to_its_next_slot(fields, postbox):
    task = make(fields, schedule=every(60, ago=5))
    slot = make_due(task, ago=timedelta(seconds=5))
    fire(postbox.publish, [task.id])
    task = reread(task)
    assert task.last_run_at == slot
    assert timedelta(seconds=50) < task.next_run_at - slot <= timedelta(seconds=60)


def test_max_runs_ends_a_task(fields, postbox):
    task = make(fields, schedule=every(1, ago=5), max_runs=2)
    make_due(task, ago=timedelta(seconds=5))
    fire(postbox.publish, [task.id])
    assert len(recorded(task)) == 2
    assert reread(task).state == TaskState.COMPLETED


@pytest.mark.parametrize("change", [tasks.pause, lambda s, n, i, _: tasks.delete(s, n, i)])
def test_a_task_that_was_paused_or_deleted_is_not_fired(fields, postbox, change):
    task = make(fields, schedule={"type": "now"})
    with db.transaction() as session:
        change(session, now(), task.id, None)
    fired = fire(postbox.publish, [task.id])
    assert not postbox.sent
    assert fired.next_run_at == {task.id: None}


def test_an_entry_of_no_task_is_told_to_go(postbox):
    stranger = uuid4()
    assert fire(postbox.publish, [stranger]).next_run_at == {stranger: None}


def test_a_task_that_another_beat_is_firing_is_passed_over(fields, postbox):
    task = make(fields, schedule={"type": "now"})
    with db.transaction() as session:
        session.scalars(select(Task).where(Task.id == task.id).with_for_update()).one()
        fired = fire(postbox.publish, [task.id])
    assert fired.next_run_at == {}
    assert not postbox.sent


def test_the_audit_path_fires_what_nobody_rang_and_has_it_mirrored_again(fields, postbox):
    late, fresh = make(fields, schedule=every(60, ago=30)), make(fields, schedule=every(60, ago=30))
    make_due(late, ago=timedelta(seconds=29))
    make_due(fresh, ago=timedelta(seconds=1))
    with db.transaction() as session:
        session.execute(update(Task).values(mirrored_version=Task.version))
    dispatch.fire_overdue(postbox.publish, timedelta(seconds=20))
    assert [message.ticket.task for message in postbox.sent] == [late.id]
    assert reread(late).mirrored_version == 0
    assert reread(fresh).mirrored_version == reread(fresh).version


@pytest.mark.parametrize(
    ("policy", "states"),
    [
        # slots 31, 26, 21, 16, 11, 6 and 1 s ago, of which those over 10 s ago were missed
        ("latest", ["queued"] * 3),
        ("all", ["queued"] * 7),
        ("none", ["skipped"] * 5 + ["queued"] * 2),
    ],
)
def test_after_downtime_the_catchup_policy_decides(fields, postbox, policy, states):
    task = make(fields, schedule=every(5, ago=31), catchup={"policy": policy, "window": timedelta(days=1)})
    make_due(task, ago=timedelta(seconds=31))
    fire(postbox.publish, [task.id])
    found = recorded(task)
    assert sum(run.missed + 1 for run in found) == 7
    assert [run.state for run in found] == states
    assert {run.reason for run in found if run.state == "skipped"} <= {Reason.MISSED}


def test_slots_older_than_the_window_are_recorded_as_missed(fields, postbox):
    task = make(fields, schedule=every(60, ago=600), catchup={"policy": "all", "window": timedelta(seconds=150)})
    make_due(task, ago=timedelta(seconds=600))
    fire(postbox.publish, [task.id])
    first, *others = recorded(task)
    assert (first.state, first.reason, first.missed) == ("skipped", Reason.MISSED, 7)
    assert [run.state for run in others] == ["queued"] * 3


def test_a_narrow_window_holds_back_nothing_that_can_start_in_time(fields, postbox):
    task = make(fields, schedule=every(4, ago=5), catchup={"policy": "none", "window": timedelta(seconds=1)})
    make_due(task, ago=timedelta(seconds=5))
    fire(postbox.publish, [task.id])
    assert [run.state for run in recorded(task)] == ["queued"] * 2


def test_a_long_absence_is_counted_to_a_bound_and_costs_little(fields, postbox):
    task = make(fields, schedule=every(1, ago=400 * 86_400), catchup={"policy": "latest", "window": None})
    with db.transaction() as session:
        session.execute(update(Task).values(catchup_window=None))
    make_due(task, ago=timedelta(days=400))
    started = time.monotonic()
    fire(postbox.publish, [task.id])
    assert time.monotonic() - started < 3
    newest, *fresh = recorded(task)
    assert (newest.state, len(fresh)) == ("queued", 10)
    assert policies.MAX_COUNT / 3 < newest.missed <= policies.MAX_COUNT


def test_two_slots_close_together_do_not_hide_a_long_absence(fields, postbox):
    rule = {"type": "rrule", "rule": "FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0,1", "starts": "2026-01-01T00:00:00Z"}
    task = make(fields, schedule=rule, catchup={"policy": "latest", "window": timedelta(days=3)})
    with db.transaction() as session:
        nine = db.now(session).replace(hour=9, minute=0, second=0, microsecond=0) - timedelta(days=1)
        session.execute(update(Task).values(next_run_at=nine))
    fire(postbox.publish, [task.id])
    assert recorded(task)[0].state == "queued"


@pytest.mark.parametrize("expression", ["0 0 1 1 *", "0 0 1 */3 *"])
def test_a_rare_task_without_a_window_is_fired(fields, postbox, expression):
    task = make(fields, schedule={"type": "cron", "expression": expression})
    with db.transaction() as session:
        session.execute(update(Task).values(catchup_window=None, next_run_at=db.now(session)))
    fire(postbox.publish, [task.id])
    assert [run.state for run in recorded(task)] == ["queued"]


def test_a_slot_that_overlap_skipped_does_not_count_toward_max_runs(fields, postbox):
    task = make(fields, schedule=every(60, ago=30), overlap="skip", max_runs=2)
    for _ in range(3):
        make_due(task)
        fire(postbox.publish, [task.id])
    assert [run.state for run in recorded(task)] == ["queued", "skipped", "skipped"]
    assert reread(task).state == TaskState.ACTIVE


def test_what_a_batch_has_no_time_to_plan_stays_due(fields, postbox, monkeypatch):
    monkeypatch.setattr(dispatch, "PLANNING", -1.0)
    task = make(fields, schedule={"type": "now"})
    assert fire(postbox.publish, [task.id]).next_run_at == {task.id: task.next_run_at}
    monkeypatch.undo()
    fire(postbox.publish, [task.id])
    assert len(postbox.sent) == 1


def test_a_one_time_task_that_was_missed_runs_however_late(fields, postbox):
    task = make(fields, schedule={"type": "once", "at": (now() - timedelta(days=40)).isoformat()})
    fire(postbox.publish, [task.id])
    assert [run.state for run in recorded(task)] == ["queued"]


def test_a_slot_is_skipped_while_an_earlier_run_is_open(fields, postbox):
    task = make(fields, schedule=every(60, ago=30), overlap="skip")
    make_due(task)
    fire(postbox.publish, [task.id])
    make_due(task)
    fire(postbox.publish, [task.id])
    first, second = recorded(task)
    assert first.state == "queued"
    assert (second.state, second.reason) == ("skipped", Reason.OVERLAP)
    with db.transaction() as session:
        session.execute(update(Run).where(Run.id == first.id).values(state="succeeded", finished_at=func.now()))
    make_due(task)
    fire(postbox.publish, [task.id])
    assert recorded(task)[-1].state == "queued"


def held(fields, postbox, overlap, **changed):
    """A task with a run that is open, and the later one that its policy made."""
    task = make(fields, schedule=every(60, ago=30), overlap=overlap, **changed)
    for _ in range(2):
        make_due(task)
        fire(postbox.publish, [task.id])
    return task, *recorded(task)


def take_held():
    with db.transaction() as session:
        return [message.ticket.run for message in outbox.take_held(session)]


def end(run):
    with db.transaction() as session:
        session.execute(update(Run).where(Run.id == run.id).values(state="succeeded", finished_at=func.now()))


def test_with_queue_one_slot_waits_for_the_end_of_the_earlier_run(fields, postbox):
    task, first, second = held(fields, postbox, "queue")
    assert ((first.state, first.held), (second.state, second.held)) == (("queued", False), ("pending", True))
    assert postbox.runs == [first.id]
    make_due(task)
    fire(postbox.publish, [task.id])
    assert [run.reason for run in recorded(task)] == [None, None, Reason.OVERLAP]
    with db.transaction() as session:
        session.execute(update(Run).values(fired_at=Run.fired_at - timedelta(minutes=1)))
        assert second.id not in {message.ticket.run for message in outbox.take_pending(session)}
    assert take_held() == []
    end(first)
    assert take_held() == [second.id]
    assert take_held() == []
    assert not recorded(task)[1].held


def test_two_beats_that_release_at_once_send_what_was_held_once(fields, postbox):
    _, first, second = held(fields, postbox, "queue")
    end(first)
    taken, barrier = [], Barrier(4)

    def release():
        barrier.wait()
        taken.extend(take_held())

    threads = [Thread(target=release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [second.id]


def test_what_is_held_counts_toward_max_runs(fields, postbox):
    task, _, _ = held(fields, postbox, "queue", max_runs=2)
    assert reread(task).state == TaskState.COMPLETED


def test_with_cancel_a_waiting_run_makes_way_at_once(fields, postbox):
    _, first, second = held(fields, postbox, "cancel")
    assert (first.state, first.reason) == ("cancelled", Reason.OVERLAP)
    assert (second.state, second.held) == ("queued", False)
    assert postbox.runs == [first.id, second.id]


def test_with_cancel_the_newest_slot_waits_until_the_running_one_has_made_way(fields, postbox):
    task = make(fields, schedule=every(60, ago=30), overlap="cancel")
    make_due(task)
    fire(postbox.publish, [task.id])
    ticket = postbox.sent[0].ticket
    assert runs.claim(ticket, "one@host")
    for _ in range(2):
        make_due(task)
        fire(postbox.publish, [task.id])
    first, second, third = recorded(task)
    assert (first.state, first.cancel_reason) == ("running", Reason.OVERLAP)
    assert (second.state, second.reason, second.held) == ("cancelled", Reason.OVERLAP, False)
    assert (third.state, third.held) == ("pending", True)
    assert take_held() == []
    with db.transaction() as session:
        attempts.fail(session, ticket, Reason.ERROR, {"type": "Cancelled"}, 0.0)
    first = recorded(task)[0]
    assert (first.state, first.reason) == ("cancelled", Reason.OVERLAP)
    assert take_held() == [third.id]


def test_resuming_from_now_records_what_the_pause_passed_over(fields):
    task = make(fields, schedule=every(60, ago=300))
    make_due(task, ago=timedelta(seconds=300))
    with db.transaction() as session:
        tasks.pause(session, now(), task.id, "for a while")
        task = tasks.resume(session, now(), task.id, "now")
    assert task.state == TaskState.ACTIVE
    assert task.next_run_at > now()
    [run] = recorded(task)
    assert (run.state, run.reason, run.missed) == ("skipped", Reason.PAUSED, 5)


def test_resuming_from_the_last_slot_fires_what_the_pause_held_back(fields, postbox):
    task = make(fields, schedule=every(60, ago=300), catchup={"policy": "all", "window": None})
    make_due(task, ago=timedelta(seconds=300))
    with db.transaction() as session:
        tasks.pause(session, now(), task.id, None)
        tasks.resume(session, now(), task.id, "last")
    fire(postbox.publish, [task.id])
    assert len(recorded(task)) == 6


def test_a_task_whose_slots_cannot_be_computed_is_paused_and_its_neighbours_are_fired(fields, postbox):
    poison, sound = make(fields, schedule={"type": "now"}), make(fields, schedule={"type": "now"})
    with db.transaction() as session:
        session.execute(update(Task).where(Task.id == poison.id).values(schedule={"type": "riddle"}))
    fired = fire(postbox.publish, [poison.id, sound.id])
    assert [message.ticket.task for message in postbox.sent] == [sound.id]
    assert fired.next_run_at == {poison.id: None, sound.id: None}
    paused = reread(poison)
    assert paused.state == TaskState.PAUSED
    assert paused.note.startswith("Paused by Punctual: its slots cannot be computed")


def test_many_tasks_are_fired_with_as_many_statements_as_one(fields, postbox, statements, monkeypatch):
    monkeypatch.setattr(packs, "FRESH", 3600)
    made = [make(fields, schedule={"type": "now"}) for _ in range(100)]
    packs.pace()  # read each few seconds, however much is fired
    with statements() as one:
        fire(postbox.publish, [made[0].id])
    with statements() as many:
        fire(postbox.publish, [task.id for task in made[1:]])
    assert len(many) == len(one)
    with db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 100
