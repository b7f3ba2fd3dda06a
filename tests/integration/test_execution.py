"""Claim, call, record: in this process, with a real PostgreSQL."""

import os
import pickle
import signal
from datetime import timedelta
from uuid import uuid4

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore
from firing import fire
from sqlalchemy import select, update

from app import db, runs, tasks
from app.models import Run
from app.states import Reason, RunState
from workers import cancelling, execution
from workers.cancelling import Cancelled
from workers.verdicts import GiveUp, TryAgain

RETRY = {"backoff": timedelta(0), "backoff_max": timedelta(0), "jitter": False}

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def queue(fields, postbox):
    """Makes a queued run of a task; returns its ticket."""

    def make(**changed):
        with db.transaction() as session:
            task = tasks.create(session, db.now(session), fields(schedule={"type": "now"}, **changed))
        fire(postbox.publish, [task.id])
        return postbox.sent[-1].ticket

    return make


@pytest.fixture
def ticket(queue):
    return queue()


@pytest.fixture(autouse=True)
def keep_the_signals():
    numbers = (signal.SIGUSR1, cancelling.SIGNAL)
    kept = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, kept, strict=True):
        signal.signal(number, handler)
    cancelling._write([])
    execution._soft_limit.pid = None


def reread(ticket):
    with db.transaction() as session:
        return session.scalars(select(Run).where(Run.id == ticket.run)).one()


def fail(exc):
    def call():
        raise exc

    return call


def test_a_result_is_returned_and_recorded(ticket):
    assert execution.execute(ticket, "w@h", "debug.echo", lambda: {"n": 1}) == {"n": 1}
    run = reread(ticket)
    assert (run.state, run.result, run.worker) == (RunState.SUCCEEDED, {"n": 1}, "w@h")


def test_a_second_delivery_is_ignored_and_calls_nothing(ticket):
    execution.execute(ticket, "w@h", "debug.echo", lambda: 1)
    called = []
    with pytest.raises(Ignore):
        execution.execute(ticket, "w@h", "debug.echo", lambda: called.append(1))
    assert called == []


def test_an_error_is_raised_and_recorded_with_its_traceback(ticket):
    with pytest.raises(ZeroDivisionError):
        execution.execute(ticket, "w@h", "debug.echo", lambda: 1 / 0)
    run = reread(ticket)
    assert (run.state, run.reason) == (RunState.FAILED, Reason.ERROR)
    assert (run.error["type"], run.error["message"]) == ("ZeroDivisionError", "division by zero")
    assert "Traceback" in run.error["traceback"]


def test_the_soft_limit_strikes_the_target_and_is_recorded_as_a_timeout(ticket):
    with pytest.raises(SoftTimeLimitExceeded):
        execution.execute(ticket, "w@h", "debug.echo", lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert reread(ticket).reason == Reason.TIMEOUT


def cancel(run):
    """A target that is told to end: `run` is the one that is to be cancelled."""

    def call():
        cancelling._write([run])
        os.kill(os.getpid(), cancelling.SIGNAL)
        return "done"

    return call


def test_a_run_that_is_to_be_cancelled_is_told_and_ends_as_cancelled(ticket):
    with db.transaction() as session:
        runs.cancel(session, db.now(session), ticket.run)  # it waits, and is claimed all the same
        session.execute(update(Run).values(state="queued", reason=None, finished_at=None, cancel_reason="by_user"))
    with pytest.raises(Cancelled):
        execution.execute(ticket, "w@h", "debug.echo", cancel(ticket.run))
    run = reread(ticket)
    assert (run.state, run.reason, run.error["type"]) == ("cancelled", Reason.BY_USER, "Cancelled")


def test_the_signal_for_another_run_changes_nothing(ticket):
    assert execution.execute(ticket, "w@h", "debug.echo", cancel(uuid4())) == "done"
    assert reread(ticket).state == RunState.SUCCEEDED


def test_a_target_says_when_it_is_to_be_tried_again(queue):
    ticket = queue(retry={"max_attempts": 2} | RETRY)
    with pytest.raises(TryAgain):
        execution.execute(ticket, "w@h", "debug.echo", fail(TryAgain("busy", after=timedelta(minutes=5))))
    run = reread(ticket)
    assert (run.state, run.error["message"]) == (RunState.RETRYING, "busy")
    assert run.retry_at - run.attempt_started_at > timedelta(minutes=4)


def test_a_target_that_gives_up_is_not_tried_again(queue):
    ticket = queue(retry={"max_attempts": 9} | RETRY)
    with pytest.raises(GiveUp):
        execution.execute(ticket, "w@h", "debug.echo", fail(GiveUp("no such account")))
    assert reread(ticket).state == RunState.FAILED


@pytest.mark.parametrize("after", [-1, float("inf"), float("nan"), timedelta(seconds=-1)])
def test_a_time_that_is_none_is_refused_where_it_is_given(after):
    with pytest.raises(ValueError, match="after is"):
        TryAgain(after=after)


def test_what_a_target_says_survives_the_way_to_the_workers_main_process():
    assert vars(pickle.loads(pickle.dumps(TryAgain("busy", after=3)))) == {"after": 3.0}


def test_a_soft_limit_that_strikes_after_the_target_changes_nothing(ticket, monkeypatch):
    insist = execution.insist

    def disturbed(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return insist(*args)

    def call():
        monkeypatch.setattr(execution, "insist", disturbed)
        return "done"

    assert execution.execute(ticket, "w@h", "debug.echo", call) == "done"
    assert reread(ticket).state == RunState.SUCCEEDED


def test_a_soft_limit_that_strikes_before_the_target_ends_it_as_soon_as_it_is_called(ticket, monkeypatch):
    claim = execution._claim

    def disturbed(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return claim(*args)

    monkeypatch.setattr(execution, "_claim", disturbed)
    called = []
    with pytest.raises(SoftTimeLimitExceeded):
        execution.execute(ticket, "w@h", "debug.echo", lambda: called.append(1))
    assert called == []
    assert reread(ticket).reason == Reason.TIMEOUT


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (None, None),
        ({"a": [1, "x", None, True, 0.5]}, {"a": [1, "x", None, True, 0.5]}),
        ("a\0b\ud800", "a\N{SYMBOL FOR NULL}b?"),
        ({"k\0": ["\0"]}, {"k\N{SYMBOL FOR NULL}": ["\N{SYMBOL FOR NULL}"]}),
        (float("nan"), "nan"),
        ({1, 2}, "{1, 2}"),
        (b"bytes", "b'bytes'"),
    ],
)
def test_whatever_a_target_returns_can_be_stored(ticket, result, kept):
    execution.execute(ticket, "w@h", "debug.echo", lambda: result)
    run = reread(ticket)
    assert (run.state, run.result) == (RunState.SUCCEEDED, kept)


def test_a_result_over_64_kib_is_cut_and_says_so(ticket):
    execution.execute(ticket, "w@h", "debug.echo", lambda: "x" * 100_000)
    kept = reread(ticket).result
    assert kept["truncated"] is True
    assert kept["size"] == 100_002
    assert len(kept["start"]) < execution.MAX_RESULT


def test_whatever_a_target_raises_can_be_stored(ticket):
    message = "\0\ud800" + "x" * 100_000
    with pytest.raises(RuntimeError):
        execution.execute(ticket, "w@h", "debug.echo", fail(RuntimeError(message)))
    error = reread(ticket).error
    assert error["message"].startswith("\N{SYMBOL FOR NULL}?x")
    assert len(error["message"]) == execution.MAX_MESSAGE
    assert len(error["traceback"]) <= execution.MAX_TRACEBACK
