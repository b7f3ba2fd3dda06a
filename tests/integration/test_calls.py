"""Calls from other apps, in this process, on a real PostgreSQL: what they do, say and repeat."""

import json
import re
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from celery.exceptions import Reject
from sqlalchemy import func, select
from stores import ROOT

from app import broker, db
from app.messages import RECORD_FAILURE, RECORD_SUCCESS
from app.models import Answer, AuditEntry, Run, Target, Task
from workers import calls, heartbeat

pytestmark = pytest.mark.usefixtures("database")

EVERY_HOUR = {"type": "interval", "every": 3600}


def ask(task, /, *args, message_id=None, **given):
    """The call as a worker makes it for a message of that id."""
    task.push_request(id=message_id or str(uuid4()), called_directly=False)
    try:
        return task(*args, **given)
    finally:
        task.pop_request()


@pytest.fixture
def task():
    return ask(calls.create_task, target="debug.echo", schedule=EVERY_HOUR, name="hourly")


def count(model):
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(model))


def test_a_message_that_is_delivered_again_registers_nothing_and_gets_the_same_answer():
    given = {"target": "debug.echo", "schedule": EVERY_HOUR}
    first = ask(calls.create_task, message_id="m", **given)
    assert ask(calls.create_task, message_id="m", **given) == first
    assert ask(calls.create_task, message_id="n", **given) != first
    assert count(Task) == 2


def test_a_key_makes_a_repeated_call_do_nothing(task):
    runs = {ask(calls.run_task, task="hourly", idempotency_key="once")["id"] for _ in range(3)}
    assert len(runs) == count(Run) == 1


def test_the_same_key_with_other_fields_is_refused():
    ask(calls.create_task, target="debug.echo", schedule=EVERY_HOUR, idempotency_key="k")
    with pytest.raises(ValueError, match="idempotency_key: This key came with something else before"):
        ask(calls.create_task, target="debug.sleep", schedule=EVERY_HOUR, idempotency_key="k")


def test_a_task_that_is_deleted_twice_by_one_message_is_answered_twice(task):
    gone = [ask(calls.delete_task, message_id="m", task="hourly") for _ in range(2)]
    assert [answer["state"] for answer in gone] == ["deleted", "deleted"]
    with pytest.raises(LookupError, match="There is no such task"):
        ask(calls.delete_task, task=task["id"])


def test_an_id_goes_before_a_name_that_looks_like_it(task):
    ask(calls.create_task, target="debug.echo", schedule=EVERY_HOUR, name=task["id"])
    assert ask(calls.get_task, task=task["id"])["name"] == "hourly"


@pytest.mark.parametrize(
    ("call", "given", "raised", "said"),
    [
        ("create_task", {}, ValueError, "schedule: Missing data for required field."),
        ("create_task", {"target": "nope", "schedule": EVERY_HOUR}, ValueError, "target: No worker offers 'nope'"),
        ("create_task", {"target": "debug.echo", "schedule": {"type": "cron"}}, ValueError, "schedule.expression: "),
        (
            "create_task",
            {"target": "debug.echo", "schedule": EVERY_HOUR, "retry": {"backoff": -1}},
            ValueError,
            "retry.backoff: Must be from 0 to 86400 seconds.",
        ),
        ("create_task", {"target": "debug.echo", "schedule": EVERY_HOUR, "name": "hourly"}, RuntimeError, "name: This"),
        ("create_task", {"idempotency_key": ""}, ValueError, "idempotency_key: "),
        ("create_task", {"idempotency_key": 5}, ValueError, "idempotency_key: Must be a string."),
        ("create_task", {"kwargs": {"x": b"raw"}}, TypeError, "must be JSON"),
        ("change_task", {"task": "hourly", "state": "paused"}, ValueError, "state: Unknown field."),
        ("change_task", {"priority": 1}, ValueError, "task: Missing data for required field."),
        ("pause_task", {"task": "nope"}, LookupError, "There is no such task."),
        ("pause_task", {"task": "hourly", "note": 5}, ValueError, "note: Must be a string."),
        ("resume_task", {"task": "hourly", "from": "then"}, ValueError, "from: Must be one of: now, last."),
        ("delete_task", {"task": "hourly", "force": True}, ValueError, "force: Unknown field."),
        ("run_task", {"task": "hourly", "args": 5}, ValueError, "args: Must be an array."),
        ("get_task", {"task": "hourly", "x": 1}, ValueError, "x: Unknown field."),
        ("get_run", {"run": "x"}, ValueError, "run: Must be a run's id, a UUID."),
        ("get_run", {"run": str(uuid4())}, LookupError, "There is no such run."),
    ],
)
def test_what_is_wrong_is_said_in_an_exception_of_pythons_own(task, call, given, raised, said):
    before = count(Task), count(Answer)
    with pytest.raises(raised) as caught:
        ask(getattr(calls, call), **given)
    assert type(caught.value) is raised
    assert said in str(caught.value)
    assert caught.value.args == (str(caught.value),)
    assert (count(Task), count(Answer)) == before


def test_arguments_by_position_are_refused():
    with pytest.raises(TypeError, match="Everything is given by name"):
        ask(calls.get_task, "hourly")


def test_times_and_ids_that_celery_has_made_objects_of_are_taken(task):
    at = datetime(2190, 1, 1, tzinfo=UTC)
    made = ask(calls.create_task, target="debug.echo", schedule={"type": "once", "at": at}, labels={"of": "x"})
    assert made["next_run_at"] == "2190-01-01T00:00:00.000Z"
    run = ask(calls.run_task, task="hourly")
    assert ask(calls.get_run, run=UUID(run["id"]))["id"] == run["id"]


def test_an_answer_is_json(task):
    assert json.loads(json.dumps(task)) == task


def test_a_failure_of_our_own_tells_the_caller_no_secrets(caplog):
    def broken():
        raise KeyError("s3cret")

    call = broker.celery_app.task(name="punctual.broken", base=calls.Call, shared=False)(broken)
    try:
        with pytest.raises(RuntimeError, match=r"^Something went wrong inside Punctual\.$"):
            ask(call)
    finally:
        broker.celery_app.tasks.unregister("punctual.broken")
    assert "punctual.broken failed" in caplog.text


def test_a_call_waits_for_postgresql_and_then_goes_back_to_the_queue(no_database, monkeypatch):
    monkeypatch.setattr(calls, "PATIENCE", calls.PATIENCE * 0)
    with pytest.raises(Reject) as caught:
        ask(calls.create_task, target="debug.echo", schedule=EVERY_HOUR)
    assert caught.value.requeue is True


def test_calls_are_offered_as_no_targets(database):
    heartbeat.offer([calls.create_task, calls.record_success])
    with db.transaction() as session:
        assert not list(session.scalars(select(Target.name).where(Target.name.startswith("punctual."))))


def test_the_documentation_lists_each_call_and_what_each_raises():
    page = (ROOT / "docs/celery.md").read_text()
    ours = {name for name, task in broker.celery_app.tasks.items() if isinstance(task, calls.Call)}
    assert set(re.findall(r"^\| `(punctual\.\w+)` \|", page, re.MULTILINE)) == ours - {RECORD_SUCCESS, RECORD_FAILURE}
    shown = dict(re.findall(r"^\| `(\w+Error)` \| (\d+):", page, re.MULTILINE))
    assert shown == {raised.__name__: str(error.status) for error, raised in calls.RAISED.items()}


def test_a_call_that_changes_something_is_noted_with_who_sent_it(task):
    ask(calls.pause_task, task=task["id"], note="why")
    ask(calls.get_task, task=task["id"])
    with db.transaction() as session:
        *_, paused = session.query(AuditEntry).order_by(AuditEntry.id).all()
    assert (paused.actor, paused.via, paused.action) == ("celery", "celery", "pause")
    assert paused.after == {"state": "paused", "note": "why"}
