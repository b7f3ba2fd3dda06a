"""What the drill reads of `runs` and `attempts` is what Punctual has written there."""

from datetime import timedelta

import pytest
from firing import fire

from app import attempts, db, outbox, runs, tasks
from app.states import Reason
from drill import ledger

pytestmark = pytest.mark.usefixtures("database")

RETRY = {"max_attempts": 3, "backoff": timedelta(0), "backoff_max": timedelta(0), "jitter": False}


def fire_one(fields, postbox, name):
    with db.transaction() as session:
        task = tasks.create(session, db.now(session), fields(name=name, retry=RETRY, schedule={"type": "now"}))
    fire(postbox.publish, [task.id])
    return task, postbox.sent.pop().ticket


def test_only_the_tasks_of_its_name_are_read(database, fields, postbox):
    _, ticket = fire_one(fields, postbox, "drill-1")
    fire_one(fields, postbox, "other-drill-1")
    fire_one(fields, postbox, "drillx1")
    [row] = ledger.read(database, "drill-")
    assert (row.run, row.task, row.slot) == (str(ticket.run), "drill-1", ticket.slot)
    assert (row.state, row.trigger, row.missed, row.attempt, row.claims) == ("queued", "schedule", 0, 1, 0)
    assert row.fired_at <= row.published_at


def test_claims_count_the_attempts_that_a_worker_took(database, fields, postbox):
    _, ticket = fire_one(fields, postbox, "drill-1")
    error = {"type": "E", "message": "", "traceback": None}

    def claims():
        [row] = ledger.read(database, "drill-")
        return row.state, row.claims, len(row.attempts)

    assert runs.claim(ticket, "w")
    assert claims() == ("running", 1, 0)
    with db.transaction() as session:
        attempts.fail(session, ticket, Reason.ERROR, error, 0.0)
    assert claims() == ("retrying", 1, 1)
    with db.transaction() as session:
        [message] = outbox.take_retries(session)
    assert claims() == ("pending", 1, 1)
    assert runs.claim(message.ticket, "w")
    assert claims() == ("running", 2, 1)
    assert runs.succeed(message.ticket, None)
    assert claims() == ("succeeded", 2, 1)
