"""Runs of other apps' targets: where they go, and what ends them. PostgreSQL is real, the other app is played."""

import math
from datetime import timedelta

import pytest
from firing import fire
from sqlalchemy import select, update

from app import db, errors, external, outbox, packs, queries, runs, schemas, settings, tasks
from app.messages import EXTERNAL_GRACE, Message, Ticket
from app.models import Run, Target
from app.states import Reason, RunState
from beat.chores import Chores

TIMEOUT = timedelta(seconds=60)


@pytest.fixture(autouse=True)
def _known(database, monkeypatch):
    monkeypatch.setenv("PUNCTUAL_EXTERNAL_TARGETS", "billing.*@billing")
    settings.load.cache_clear()
    yield
    monkeypatch.undo()
    settings.load.cache_clear()


@pytest.fixture
def create(fields):
    def call(**changed):
        given = {"target": "billing.charge", "schedule": {"type": "now"}, "timeout": TIMEOUT} | changed
        with db.transaction() as session:
            return tasks.create(session, db.now(session), fields(**given))

    return call


@pytest.fixture
def sent(create, postbox):
    """Fires a task of another app's target and gives its message."""

    def call(**changed):
        fire(postbox.publish, [create(**changed).id])
        return postbox.sent[-1]

    return call


def retry(attempts):
    return {"max_attempts": attempts, "backoff": timedelta(0), "backoff_max": timedelta(0), "jitter": False}


def reread(ticket):
    with db.transaction() as session:
        return session.scalars(select(Run).where(Run.id == ticket.run)).one()


def succeed(ticket, result='"paid"'):
    with db.transaction() as session:
        return external.succeed(session, ticket, result, "1@there")


def fail(ticket):
    with db.transaction() as session:
        return external.fail(session, ticket, "1@there", 0.5)


def age(ticket, by):
    with db.transaction() as session:
        session.execute(update(Run).where(Run.id == ticket.run).values(published_at=Run.published_at - by))


def give_up():
    with db.transaction() as session:
        return external.give_up(session)


def later(ticket, **changed):
    return Ticket(**{name: getattr(ticket, name) for name in ("task", "run", "slot", "attempt")} | changed)


def test_its_task_goes_to_the_other_apps_queue_whatever_is_given(create):
    assert create(queue="reports").queue == "billing"


def test_nothing_else_goes_to_the_other_apps_queue(create):
    with pytest.raises(errors.Invalid) as caught:
        create(target="debug.echo", queue="billing")
    assert caught.value.errors.keys() == {"queue"}


def test_a_task_whose_target_changes_changes_its_queue(create):
    made = create(target="debug.echo", queue="reports", schedule={"type": "interval", "every": 60})

    def change(**changed):
        with db.transaction() as session:
            return tasks.change(session, db.now(session), made.id, changed).queue

    assert change(target="billing.charge") == "billing"
    assert change(priority=1) == "billing"
    assert change(target="debug.echo") == "default"
    assert change(target="billing.charge", queue="reports") == "billing"
    assert change(target="debug.echo", queue="reports") == "reports"


def test_an_answer_ends_it_and_leaves_unknown_what_is_not_known(sent):
    ticket = sent().ticket
    assert reread(ticket).state == RunState.QUEUED
    assert succeed(ticket)
    run = reread(ticket)
    assert (run.state, run.result, run.worker) == (RunState.SUCCEEDED, "paid", "1@there")
    assert run.finished_at > run.published_at
    assert run.started_at is run.attempt_started_at is None
    with db.transaction() as session:
        shown = schemas.RunDetailSchema().dump(queries.run(session, run.id))
    assert shown["lateness_ms"] is None
    [attempt] = shown["attempts"]
    assert (attempt["outcome"], attempt["started_at"]) == ("succeeded", None)


def test_an_answer_that_is_quicker_than_the_confirm_counts(sent, postbox):
    postbox.takes = False
    ticket = sent().ticket
    assert reread(ticket).state == RunState.PENDING
    assert succeed(ticket)
    with db.transaction() as session:
        runs.mark_queued(session, postbox.parcels)
    run = reread(ticket)
    assert (run.state, run.published_at) == (RunState.SUCCEEDED, ticket.sent_at)


def test_an_answer_of_nothing_leaves_no_result(sent):
    ticket = sent().ticket
    assert succeed(ticket, None)
    assert reread(ticket).result is None


def test_a_second_answer_is_refused(sent):
    ticket = sent().ticket
    assert succeed(ticket)
    assert not succeed(ticket, '"again"')
    assert fail(ticket) is None
    assert reread(ticket).result == "paid"


def test_a_failure_is_recorded_and_tried_again_while_attempts_are_left(sent):
    ticket = sent(retry=retry(2)).ticket
    assert fail(ticket) == RunState.RETRYING
    assert not succeed(ticket)  # the attempt is over, its next one has not begun
    with db.transaction() as session:
        [message] = outbox.take_retries(session)
    assert (message.ticket.attempt, message.queue) == (2, "billing")
    assert not succeed(ticket)  # a late answer of the first attempt
    assert fail(message.ticket) == RunState.FAILED
    run = reread(ticket)
    assert (run.reason, run.error["type"]) == (Reason.ERROR, "FailedElsewhere")
    assert str(run.id) in run.error["message"]


def test_a_ticket_of_one_of_our_own_runs_opens_nothing(sent):
    ticket = sent(target="debug.echo").ticket
    assert not succeed(ticket)
    assert fail(ticket) is None
    assert reread(ticket).state == RunState.QUEUED


def test_an_answer_for_a_cancelled_run_is_refused(sent):
    ticket = sent().ticket
    with db.transaction() as session:
        runs.cancel(session, db.now(session), ticket.run)
    assert not succeed(ticket)
    assert reread(ticket).state == RunState.CANCELLED


def test_an_answer_that_never_comes_is_given_up_after_the_timeout_and_a_grace(sent):
    ticket = sent(retry=retry(2)).ticket
    age(ticket, TIMEOUT + EXTERNAL_GRACE)
    assert give_up() == (0, 0)
    age(ticket, external.ANSWER_GRACE)
    assert give_up() == (1, 0)
    assert not succeed(ticket)
    with db.transaction() as session:
        runs.mark_queued(session, outbox.take_retries(session))
    age(ticket, TIMEOUT + EXTERNAL_GRACE + external.ANSWER_GRACE)
    assert give_up() == (0, 1)
    run = reread(ticket)
    assert (run.state, run.reason, run.attempt) == (RunState.FAILED, Reason.LOST, 2)
    assert "billing" in run.error["message"]


def test_all_that_an_absent_app_leaves_unanswered_goes_on_by_a_few_statements(create, postbox, statements):
    """One by one, what it was sent while it was away would take longer than a transaction may."""
    fire(postbox.publish, [create(retry=retry(2)).id for _ in range(30)])
    tickets = [message.ticket for message in postbox.sent]
    for ticket in tickets:
        age(ticket, TIMEOUT + EXTERNAL_GRACE + external.ANSWER_GRACE)
    with statements() as seen:
        assert give_up() == (30, 0)
    assert len(seen) <= 4
    assert {(reread(ticket).state, reread(ticket).error["type"]) for ticket in tickets} == {
        (RunState.RETRYING, "NoAnswer")
    }


def test_one_of_our_own_runs_is_never_given_up(sent):
    age(sent(target="debug.echo").ticket, timedelta(days=1))
    assert give_up() == (0, 0)


def test_a_run_that_was_never_sent_waits_for_the_other_apps_queue(sent, postbox):
    postbox.takes = False
    ticket = sent().ticket
    assert give_up() == (0, 0)
    assert reread(ticket).state == RunState.PENDING


def test_what_another_app_has_taken_is_not_taken_for_vanished(sent, postbox):
    theirs, ours = sent().ticket, sent(target="debug.echo").ticket
    for ticket in (theirs, ours):
        age(ticket, timedelta(seconds=10))
    with db.transaction() as session:
        assert outbox.count_queued(session) == {"default": 1}


def test_what_another_app_is_to_read_travels_alone_even_where_a_worker_of_ours_once_had_its_target(create, postbox):
    with db.transaction() as session:
        session.add(
            Target(
                name="billing.charge",
                queue="default",
                signature="(amount)",
                parameters=[{"name": "amount", "kind": "keyword_only", "default": None, "annotation": None}],
                documentation="",
                duration=timedelta(milliseconds=1),
                last_seen_at=db.now(session),
            )
        )
    packs._Known.until = -math.inf
    made = [create(kwargs={"cents": 5}).id for _ in range(packs.FEW)]  # and what it takes is not ours to say
    fire(postbox.publish, made)
    assert packs.pace().durations["billing.charge"]
    assert {type(parcel) for parcel in postbox.parcels} == {Message}
    assert len(postbox.parcels) == packs.FEW


def test_whether_another_apps_target_is_there_is_not_known(create):
    with db.transaction() as session:
        shown = schemas.TaskDetailSchema().dump(queries.task_detail(session, create().id))
    assert shown["target_available"] is None


def test_the_chore_waits_for_answers_that_waited_for_postgresql(sent, postbox):
    ticket = sent().ticket
    age(ticket, timedelta(hours=1))
    chores = Chores(postbox, lambda _session: None)
    chores.end_unanswered()
    assert reread(ticket).state == RunState.QUEUED
    chores.contact.since -= external.ANSWER_GRACE.total_seconds() + 1
    chores.end_unanswered()
    assert reread(ticket).reason == Reason.LOST
