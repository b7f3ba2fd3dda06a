"""Runs over REST: read with their attempts, listed by slot, cancelled, run again."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from app import attempts, db, outbox, runs
from app.messages import Ticket
from app.states import Reason

URL = "/api/v1/runs"
ERROR = {"type": "ValueError", "message": "no", "traceback": "…"}


@pytest.fixture
def task(register):
    """A task that is tried twice."""
    return register(retry={"max_attempts": 2, "backoff": 0, "jitter": False})


@pytest.fixture
def ticket(run):
    def make(attempt):
        slot = _slot(run["id"])
        return Ticket(task=UUID(run["task_id"]), run=UUID(run["id"]), slot=slot, attempt=attempt)

    return make


def _slot(run_id):
    """The exact slot: answers cut it to milliseconds."""
    from sqlalchemy import select  # noqa: PLC0415

    from app.models import Run  # noqa: PLC0415

    with db.transaction() as session:
        return session.scalars(select(Run.scheduled_for).where(Run.id == UUID(run_id))).one()


def claim(ticket):
    assert runs.claim(ticket, "worker1@host")


def test_a_run_that_waits_has_no_attempt_and_no_lateness(client, run):
    shown = client.get(f"{URL}/{run['id']}").json
    assert shown == run | {"attempts": []}
    assert (shown["lateness_ms"], shown["started_at"], shown["attempt"]) == (None, None, 1)


def test_a_running_run_shows_its_attempt_and_its_lateness(client, run, ticket):
    claim(ticket(1))
    shown = client.get(f"{URL}/{run['id']}").json
    [attempt] = shown["attempts"]
    assert (attempt["outcome"], attempt["finished_at"], attempt["worker"]) == ("running", None, "worker1@host")
    started, slot = (datetime.fromisoformat(shown[name]) for name in ("started_at", "scheduled_for"))
    assert abs((started - slot) / timedelta(milliseconds=1) - shown["lateness_ms"]) <= 1


def test_past_attempts_come_before_the_current_one_and_none_is_shown_twice(client, run, ticket):
    claim(ticket(1))
    with db.transaction() as session:
        attempts.fail(session, ticket(1), Reason.TIMEOUT, ERROR, draw=0.5)
    assert outcomes(client, run) == [(1, "timeout")]
    with db.transaction() as session:
        outbox.take_retries(session)
    assert outcomes(client, run) == [(1, "timeout")]
    claim(ticket(2))
    assert outcomes(client, run) == [(1, "timeout"), (2, "running")]
    runs.succeed(ticket(2), '{"answer": 42}')
    assert outcomes(client, run) == [(1, "timeout"), (2, "succeeded")]
    shown = client.get(f"{URL}/{run['id']}").json
    assert (shown["result"], shown["attempts"][0]["error"]) == ({"answer": 42}, ERROR)


def outcomes(client, run):
    return [(one["attempt"], one["outcome"]) for one in client.get(f"{URL}/{run['id']}").json["attempts"]]


def test_a_run_that_failed_for_good_shows_the_error_of_each_attempt(client, run, ticket):
    for attempt in (1, 2):
        claim(ticket(attempt))
        with db.transaction() as session:
            attempts.fail(session, ticket(attempt), Reason.ERROR, ERROR, draw=0.5)
            outbox.take_retries(session)
    shown = client.get(f"{URL}/{run['id']}").json
    assert (shown["state"], shown["reason"], shown["error"]) == ("failed", "error", ERROR)
    assert [(one["outcome"], one["error"]) for one in shown["attempts"]] == [("failed", ERROR)] * 2


def test_a_waiting_run_is_cancelled_once(client, run):
    answer = client.post(f"{URL}/{run['id']}/cancel")
    assert (answer.status_code, answer.json["state"], answer.json["reason"]) == (200, "cancelled", "by_user")
    again = client.post(f"{URL}/{run['id']}/cancel")
    assert (again.status_code, again.json["code"]) == (409, "conflict")


def test_a_running_run_is_shown_as_to_be_cancelled_until_its_worker_has_ended_it(client, run, ticket):
    claim(ticket(1))
    for _ in range(2):
        answer = client.post(f"{URL}/{run['id']}/cancel")
        assert (answer.status_code, answer.json["state"], answer.json["cancelling"]) == (200, "running", True)
    with db.transaction() as session:
        attempts.fail(session, ticket(1), Reason.ERROR, ERROR, 0.0)
    shown = client.get(f"{URL}/{run['id']}").json
    assert (shown["state"], shown["reason"], shown["cancelling"]) == ("cancelled", "by_user", False)
    assert client.post(f"{URL}/{run['id']}/cancel").status_code == 409


def test_a_failed_run_is_retried_under_the_same_id(client, run, ticket):
    assert client.post(f"{URL}/{run['id']}/retry").status_code == 409
    claim(ticket(1))
    with db.transaction() as session:
        attempts.fail(session, ticket(1), Reason.ERROR, ERROR, 0.0, after=float("inf"))
    answer = client.post(f"{URL}/{run['id']}/retry")
    assert (answer.status_code, answer.json["state"], answer.json["finished_at"]) == (200, "retrying", None)
    with db.transaction() as session:
        outbox.take_retries(session)
    claim(ticket(2))
    assert outcomes(client, run) == [(1, "failed"), (2, "running")]


def test_runs_are_listed_newest_slot_first_and_walked_by_cursor(client, task):
    ids = [client.post(f"/api/v1/tasks/{task['id']}/run").json["id"] for _ in range(3)]
    first = client.get(f"{URL}?limit=2").json
    second = client.get(f"{URL}?limit=2&after={first['next']}").json
    assert [run["id"] for page in (first, second) for run in page["items"]] == ids[::-1]
    assert second["next"] is None


def test_runs_are_filtered_by_task_state_and_slot(client, register, run):
    other = register()
    client.post(f"/api/v1/tasks/{other['id']}/run")
    slot = run["scheduled_for"]
    later = "2198-01-01T00:00:00%2B01:00"
    assert [one["id"] for one in client.get(f"{URL}?task_id={run['task_id']}").json["items"]] == [run["id"]]
    assert [one["id"] for one in client.get(f"/api/v1/tasks/{run['task_id']}/runs").json["items"]] == [run["id"]]
    assert len(client.get(f"{URL}?state=pending&since={slot}&until={later}").json["items"]) == 2
    assert client.get(f"{URL}?state=failed").json["items"] == []
    assert client.get(f"{URL}?since={later}").json["items"] == []
