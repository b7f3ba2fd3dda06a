"""A run's moves: each from the states that allow it, by the attempt that it speaks for, once."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from uuid import uuid4

import plans
import pytest
from firing import fire
from sqlalchemy import event, select, text, update

from app import attempts, db, errors, outbox, runs, states, tasks
from app.messages import Ticket
from app.models import Attempt, Run, Task
from app.states import Reason, RunState

pytestmark = pytest.mark.usefixtures("database")

ERROR = {"type": "RuntimeError", "message": "no", "traceback": None}
COPIES = """
    INSERT INTO runs SELECT (jsonb_populate_record(r, jsonb_build_object('id', gen_random_uuid(),
        'scheduled_for', r.scheduled_for + n * interval '1 ms'))).* FROM runs r, generate_series(1, :copies) n
"""
RETRY = {"backoff": timedelta(0), "backoff_max": timedelta(0), "jitter": False}


@pytest.fixture
def ticket(fields, postbox):
    """A queued run of a task that is tried three times."""
    with db.transaction() as session:
        task = tasks.create(
            session, db.now(session), fields(schedule={"type": "now"}, retry={"max_attempts": 3} | RETRY)
        )
    fire(postbox.publish, [task.id])
    return postbox.sent[-1].ticket


def again(ticket):
    return Ticket(task=ticket.task, run=ticket.run, slot=ticket.slot, attempt=ticket.attempt + 1)


def do(move, *args, **how):
    with db.transaction() as session:
        return move(session, *args, **how)


def reread(ticket):
    with db.transaction() as session:
        return session.scalars(select(Run).where(Run.id == ticket.run)).one()


def kept(ticket):
    with db.transaction() as session:
        found = session.scalars(select(Attempt).where(Attempt.run_id == ticket.run).order_by(Attempt.attempt))
        return list(found)


def test_a_run_is_claimed_once(ticket):
    assert runs.claim(ticket, "one@host")
    assert not runs.claim(ticket, "two@host")
    run = reread(ticket)
    assert (run.state, run.worker) == (RunState.RUNNING, "one@host")
    assert run.started_at == run.attempt_started_at == run.heartbeat_at >= run.scheduled_for


def test_a_result_is_recorded_once(ticket):
    runs.claim(ticket, "one@host")
    assert runs.succeed(ticket, '{"n": 1}')
    assert not runs.succeed(ticket, '{"n": 2}')
    assert do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5) is None
    run = reread(ticket)
    assert (run.state, run.result, run.error) == (RunState.SUCCEEDED, {"n": 1}, None)


def test_a_run_that_nobody_claimed_has_no_result(ticket):
    assert not runs.succeed(ticket, "{}")
    assert do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5) is None


def test_a_late_confirm_does_not_take_a_claimed_run_back(ticket, postbox):
    runs.claim(ticket, "one@host")
    do(runs.mark_queued, postbox.parcels)
    assert reread(ticket).state == RunState.RUNNING


def test_a_failed_attempt_is_kept_and_the_next_one_follows(ticket):
    runs.claim(ticket, "one@host")
    assert do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5) == RunState.RETRYING
    [message] = do(outbox.take_retries)
    assert message.ticket == again(ticket)
    [past] = kept(ticket)
    assert (past.attempt, past.worker, past.outcome, past.error) == (1, "one@host", "failed", ERROR)
    first_start = reread(ticket).started_at
    runs.claim(message.ticket, "two@host")
    run = reread(ticket)
    assert run.started_at == first_start < run.attempt_started_at  # lateness is the first attempt's


def test_the_last_attempt_fails_the_run(ticket):
    for number in range(3):
        assert runs.claim(ticket, "one@host")
        state = do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5)
        if number < 2:
            [message] = do(outbox.take_retries)
            ticket = message.ticket
    assert state == RunState.FAILED
    run = reread(ticket)
    assert (run.state, run.reason, run.attempt, run.error) == (RunState.FAILED, Reason.ERROR, 3, ERROR)
    assert len(kept(ticket)) == 2


def test_a_retry_waits_for_its_time(ticket):
    runs.claim(ticket, "one@host")
    do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5)
    with db.transaction() as session:
        session.execute(update(Run).values(retry_at=db.now(session) + timedelta(seconds=60)))
    assert do(outbox.take_retries) == []


def test_a_superseded_attempt_moves_nothing(ticket):
    runs.claim(ticket, "one@host")
    with db.transaction() as session:
        session.execute(update(Run).values(heartbeat_at=Run.heartbeat_at - attempts.LOST_AFTER))
    assert do(attempts.rescue_lost) == (1, 0)
    [message] = do(outbox.take_retries)
    runs.claim(message.ticket, "two@host")
    assert not runs.succeed(ticket, '{"from": "the dead"}')
    assert do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5) is None
    assert not runs.claim(ticket, "one@host")
    assert runs.succeed(message.ticket, "{}")
    assert [past.outcome for past in kept(ticket)] == ["lost"]


def test_a_run_whose_worker_is_gone_three_times_has_failed(ticket):
    for _ in range(3):
        runs.claim(ticket, "one@host")
        with db.transaction() as session:
            session.execute(update(Run).values(heartbeat_at=Run.heartbeat_at - attempts.LOST_AFTER))
        rescued = do(attempts.rescue_lost)
        ticket = next((message.ticket for message in do(outbox.take_retries)), ticket)
    assert rescued == (0, 1)
    run = reread(ticket)
    assert (run.state, run.reason, run.error["type"]) == (RunState.FAILED, Reason.LOST, "WorkerLost")


def test_all_that_a_dead_worker_held_goes_on_by_a_few_statements(ticket):
    """One by one, what it had in packs would take longer than a transaction may."""
    runs.claim(ticket, "one@host")
    seen = []
    with db.transaction() as session:
        session.execute(update(Run).values(heartbeat_at=Run.heartbeat_at - attempts.LOST_AFTER * 2))
        session.execute(text(COPIES), {"copies": 400})
        event.listen(session.connection(), "before_cursor_execute", lambda *given: seen.append(given[2]))
        assert attempts.rescue_lost(session) == (401, 0)
    assert len(seen) <= 4
    with db.transaction() as session:
        found = session.scalars(select(Run)).all()
        pasts = session.scalars(select(Attempt)).all()
    assert {(run.state, run.reason, run.attempt, run.error["type"]) for run in found} == {
        (RunState.RETRYING, Reason.LOST, 1, "WorkerLost")
    }
    assert {(past.attempt, past.worker, past.outcome, past.error["type"]) for past in pasts} == {
        (1, "one@host", "lost", "WorkerLost")
    }
    assert {past.run_id for past in pasts} == {run.id for run in found}
    assert len(do(outbox.take_retries)) == 401


def test_a_heartbeat_keeps_a_run_from_being_lost(ticket):
    runs.claim(ticket, "one@host")
    with db.transaction() as session:
        session.execute(update(Run).values(heartbeat_at=Run.heartbeat_at - attempts.LOST_AFTER))
    do(runs.renew, [ticket])
    assert do(attempts.rescue_lost) == (0, 0)


def test_a_waiting_run_is_cancelled_and_never_starts(ticket):
    with db.transaction() as session:
        run = runs.cancel(session, db.now(session), ticket.run)
    assert (run.state, run.reason) == (RunState.CANCELLED, Reason.BY_USER)
    assert not runs.claim(ticket, "one@host")


def failing(ticket, **how):
    return do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.0, **how)


def cancel(ticket):
    with db.transaction() as session:
        return runs.cancel(session, db.now(session), ticket.run)


def test_a_running_run_is_cancelled_by_its_worker(ticket):
    runs.claim(ticket, "one@host")
    assert do(runs.renew, [ticket]) == set()
    assert (cancel(ticket).state, reread(ticket).cancel_reason) == (RunState.RUNNING, Reason.BY_USER)
    assert do(runs.renew, [ticket]) == {ticket.run}
    assert failing(ticket) == RunState.CANCELLED
    run = reread(ticket)
    assert (run.state, run.reason, run.error) == (RunState.CANCELLED, Reason.BY_USER, ERROR)
    assert run.finished_at is not None


def test_a_run_that_returns_although_it_is_to_be_cancelled_has_succeeded(ticket):
    runs.claim(ticket, "one@host")
    cancel(ticket)
    assert runs.succeed(ticket, "1")
    assert reread(ticket).state == RunState.SUCCEEDED


def test_a_run_that_is_to_be_cancelled_is_not_rescued_but_cancelled(ticket):
    runs.claim(ticket, "one@host")
    cancel(ticket)
    with db.transaction() as session:
        session.execute(update(Run).values(heartbeat_at=Run.heartbeat_at - attempts.LOST_AFTER))
    do(attempts.rescue_lost)
    assert reread(ticket).state == RunState.CANCELLED


def test_a_run_that_is_to_be_cancelled_is_not_given_back_but_cancelled(ticket):
    runs.claim(ticket, "one@host")
    cancel(ticket)
    assert do(attempts.give_back, [ticket]) == 1
    run = reread(ticket)
    assert (run.state, run.reason, run.finished_at is not None) == (RunState.CANCELLED, Reason.BY_USER, True)


def test_what_has_ended_cannot_be_cancelled(ticket):
    runs.claim(ticket, "one@host")
    runs.succeed(ticket, None)
    with pytest.raises(errors.Conflict, match="this one is succeeded"):
        cancel(ticket)


def fail_for_good(ticket):
    for attempt in (ticket, again(ticket), again(again(ticket))):
        assert runs.claim(attempt, "one@host")
        state = failing(attempt, after=0.0)
        do(outbox.take_retries)
    assert state == RunState.FAILED


def test_a_target_says_itself_when_the_next_attempt_is_to_be(ticket):
    runs.claim(ticket, "one@host")
    assert failing(ticket, after=30.0) == RunState.RETRYING
    with db.transaction() as session:
        assert timedelta(seconds=25) < reread(ticket).retry_at - db.now(session) < timedelta(seconds=31)


def test_a_target_that_gives_up_has_no_other_attempt(ticket):
    runs.claim(ticket, "one@host")
    assert failing(ticket, after=math.inf) == RunState.FAILED
    assert kept(ticket) == []


def test_a_failed_run_is_run_again_as_a_further_attempt(ticket):
    fail_for_good(ticket)
    with db.transaction() as session:
        assert attempts.run_again(session, db.now(session), ticket.run).state == RunState.RETRYING
    assert [past.attempt for past in kept(ticket)] == [1, 2, 3]
    [message] = do(outbox.take_retries)
    assert (message.ticket.run, message.ticket.attempt) == (ticket.run, 4)
    assert runs.claim(message.ticket, "two@host")
    assert runs.succeed(message.ticket, "1")
    assert reread(ticket).state == RunState.SUCCEEDED


def test_only_a_failed_run_of_a_task_that_is_there_is_run_again(ticket):
    with pytest.raises(errors.Conflict, match="this one is"), db.transaction() as session:
        attempts.run_again(session, db.now(session), ticket.run)
    with pytest.raises(errors.NotFound), db.transaction() as session:
        attempts.run_again(session, db.now(session), ticket.task)
    fail_for_good(ticket)
    with db.transaction() as session:
        tasks.delete(session, db.now(session), ticket.task)
    with pytest.raises(errors.Conflict, match="deleted"), db.transaction() as session:
        attempts.run_again(session, db.now(session), ticket.run)


def manual(ticket):
    """Another run of the same task, claimed."""
    with db.transaction() as session:
        run = tasks.run(session, db.now(session), ticket.task, None, None)
    made = Ticket(task=ticket.task, run=run.id, slot=run.scheduled_for, attempt=1)
    assert runs.claim(made, "one@host")
    return made


def test_a_task_is_paused_after_so_many_failures_in_a_row(ticket):
    def state():
        with db.transaction() as session:
            task = session.get_one(Task, ticket.task)
            return task.state, task.note

    with db.transaction() as session:
        session.execute(update(Task).values(pause_after_failures=2, state="active", next_run_at=db.now(session)))
    failing(manual(ticket), after=math.inf)
    runs.succeed(manual(ticket), None)
    failing(manual(ticket), after=math.inf)
    assert state()[0] == "active"
    failing(manual(ticket), after=math.inf)
    assert state() == ("paused", "Paused by Punctual: its last 2 runs failed.")
    with db.transaction() as session:
        tasks.resume(session, db.now(session), ticket.task, "last")
    failing(manual(ticket), after=math.inf)
    assert state()[0] == "active"  # what failed before it was resumed does not count


def test_two_runs_that_fail_at_once_pause_their_task(ticket):
    with db.transaction() as session:
        session.execute(update(Task).values(pause_after_failures=2, state="active", next_run_at=db.now(session)))
    both = [manual(ticket), manual(ticket)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(failing, after=math.inf), both))
    with db.transaction() as session:
        assert session.get_one(Task, ticket.task).state == "paused"


def test_deleting_a_task_cancels_what_waits_of_it(ticket):
    with db.transaction() as session:
        tasks.delete(session, db.now(session), ticket.task)
    run = reread(ticket)
    assert (run.state, run.reason) == (RunState.CANCELLED, Reason.TASK_DELETED)


def test_a_queued_run_that_vanished_is_sent_again_under_the_same_attempt(ticket):
    assert do(outbox.take_vanished, "default", 0) == []  # a moment ago it was confirmed
    with db.transaction() as session:
        session.execute(update(Run).values(published_at=Run.published_at - outbox.SENDING))
    assert do(outbox.count_queued) == {"default": 1}
    assert do(outbox.take_vanished, "default", 1) == []  # the broker holds it
    [message] = do(outbox.take_vanished, "default", 0)
    assert do(outbox.take_vanished, "default", 0) == []  # another beat was first
    assert message.ticket == ticket
    assert reread(ticket).state == RunState.PENDING


def test_a_manual_run_carries_its_own_arguments(ticket):
    with db.transaction() as session:
        run = tasks.run(session, db.now(session), ticket.task, ["a"], None)
    [message] = do(outbox.take_run, run.id)
    assert (message.args, message.kwargs, run.trigger) == (["a"], {}, "manual")
    assert do(outbox.take_run, run.id) == []  # it is being sent


def test_two_manual_runs_in_one_microsecond_are_two_runs(ticket):
    with db.transaction() as session:
        now = db.now(session)
        first, second = (tasks.run(session, now, ticket.task, None, None) for _ in range(2))
    assert first.id != second.id
    assert first.scheduled_for < second.scheduled_for


def test_the_table_of_moves_names_every_state_that_is_not_final():
    assert states.MOVES.keys() == states.OPEN | {RunState.FAILED}  # a person may ask for a further attempt
    assert all(source in states.MOVES for to in RunState for source in states.sources(to))


def given_back(ticket):
    """Gives a claimed run back and makes it claimable again; returns the next attempt's ticket."""
    assert do(attempts.give_back, [ticket]) == 1
    with db.transaction() as session:
        [message] = outbox.take_retries(session)
    return message.ticket


def test_a_run_given_back_is_due_at_once_with_a_further_attempt(ticket):
    runs.claim(ticket, "one@host")
    assert given_back(ticket) == again(ticket)
    assert not runs.succeed(ticket, '"late"')
    run = reread(ticket)
    assert (run.state, run.attempt, run.reason, run.error) == (RunState.PENDING, 2, None, None)
    [past] = kept(ticket)
    assert (past.outcome, past.worker, past.error) == ("given_back", "one@host", None)


def test_only_a_running_run_is_given_back(ticket):
    assert do(attempts.give_back, [ticket]) == 0
    runs.claim(ticket, "one@host")
    assert do(attempts.give_back, [again(ticket)]) == 0
    runs.succeed(ticket, None)
    assert do(attempts.give_back, [ticket]) == 0
    assert kept(ticket) == []


def test_an_attempt_given_back_does_not_count_as_one(ticket):
    runs.claim(ticket, "one@host")
    ticket = given_back(ticket)
    for state in (RunState.RETRYING, RunState.RETRYING, RunState.FAILED):  # three are allowed
        runs.claim(ticket, "two@host")
        assert do(attempts.fail, ticket, Reason.ERROR, ERROR, 0.5) == state
        with db.transaction() as session:
            outbox.take_retries(session)
        ticket = again(ticket)
    assert [past.outcome for past in kept(ticket)] == ["given_back", "failed", "failed"]


def test_open_runs_are_looked_for_task_by_task_however_many_others_wait(ticket):
    """Held against each of them, a burst behind a backlog would take longer than a statement may."""
    asked = [ticket.task, *(uuid4() for _ in range(100))]
    given = db.arrays("asked", id=asked)
    with db.transaction() as session:
        session.execute(text(COPIES), {"copies": 5_000})
        assert runs.open_tasks(session, asked) == {ticket.task}
        connection = session.connection()
        compiled = runs._OPEN_TASKS.compile(dialect=connection.dialect)
        plan = connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.construct_params(given)).scalars().all()
    assert [line for line in plan if "Join Filter" in line or "Seq Scan" in line] == []
    looks = [line for line in plan if "Index" in line and "Cond" not in line]
    assert [line for line in looks if not re.search(r"(_open_task|_task_id_idx\d*) on runs", line)] == []
    assert looks


@pytest.mark.parametrize(
    "step",
    [outbox.take_pending, outbox.take_retries, outbox.take_held, outbox.count_queued, attempts.rescue_lost],
    ids=lambda step: step.__name__,
)
def test_what_chores_ask_for_needs_no_look_at_the_runs_that_have_ended_even_by_a_plan_for_any_parameters(step):
    """As PostgreSQL makes one for a statement that it has prepared."""
    seen = []
    with db.transaction() as session:
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", lambda *given: seen.append(given[2:4]))
        step(session)
        asked = next(each for each in seen if "FROM runs" in each[0])
        looks = list(plans.looks(connection.connection.driver_connection, *asked, scans=True))
    assert looks
    assert [look for look in looks if look["Node Type"] == "Seq Scan"] == []
