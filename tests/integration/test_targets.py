"""Targets are known: what workers announce, and what the API makes of it."""

import pytest
from celery import Celery
from sqlalchemy import text

from app import db, queries
from workers import heartbeat
from workers.execution import RecordedTask

URL = "/api/v1/tasks"
HOURLY = {"type": "interval", "every": 3600}
before, after = (Celery(name, set_as_current=False, task_cls=RecordedTask) for name in ("before", "after"))


@before.task(name="billing.charge", bind=True, queue="billing", shared=False)
def charge(self, customer: str, amount: float, *, note: str | None = None):
    """Charges a customer.

    Not part of the first paragraph.
    """


@before.task(name="mail.send", shared=False)
def send(to, *parts):
    """Sends a letter."""


@after.task(name="billing.charge", autoretry_for=(OSError,), shared=False)
def charge_anew(customer, cents):
    """Charges a customer otherwise."""


@pytest.fixture
def offered(database):
    """What a worker with these targets has announced."""
    heartbeat.offer([charge, send])


@pytest.fixture
def age(database):
    """Makes the last announcement of a target older."""

    def call(name, seconds):
        with db.transaction() as session:
            session.execute(
                text("UPDATE targets SET last_seen_at = now() - make_interval(secs => :seconds) WHERE name = :name"),
                {"name": name, "seconds": seconds},
            )

    return call


def listed(client, name="billing.charge"):
    [found] = [target for target in client.get("/api/v1/targets").json["items"] if target["name"] == name]
    return found


def refused(answer):
    assert answer.status_code == 422, answer.json
    return answer.json["errors"]


def test_a_worker_announces_name_queue_signature_and_documentation(offered, client):
    found = listed(client)
    found.pop("last_seen_at")
    assert found == {  # bound as it is, it does not take itself
        "name": "billing.charge",
        "queue": "billing",
        "signature": "(customer: str, amount: float, *, note: str | None = None)",
        "parameters": [
            {"name": "customer", "kind": "positional_or_keyword", "default": None, "annotation": "str"},
            {"name": "amount", "kind": "positional_or_keyword", "default": None, "annotation": "float"},
            {"name": "note", "kind": "keyword_only", "default": "None", "annotation": "str | None"},
        ],
        "documentation": "Charges a customer.",
        "available": True,
    }


def test_what_changed_is_announced_anew(offered, client):
    heartbeat.offer([charge_anew])
    found = listed(client)
    assert (found["queue"], found["signature"]) == ("default", "(customer, cents)")
    assert [parameter["name"] for parameter in found["parameters"]] == ["customer", "cents"]
    assert found["documentation"] == "Charges a customer otherwise."


def test_a_target_whose_last_worker_is_gone_is_shown_as_such_and_its_tasks_with_it(offered, client, register, age):
    task = register(target="billing.charge", kwargs={"customer": "c", "amount": 1})
    address = f"{URL}/{task['id']}"
    assert client.get(address).json["target_available"] is True
    age("billing.charge", queries.OFFERED_FOR.total_seconds() + 1)
    assert listed(client)["available"] is False
    assert client.get(address).json["target_available"] is False
    assert listed(client, "debug.echo")["available"] is True
    heartbeat.offer([charge])
    assert client.get(address).json["target_available"] is True


def test_a_lost_worker_is_seen_within_a_minute_and_two_late_announcements_are_forgiven():
    assert queries.OFFERED_FOR.total_seconds() <= 60
    assert queries.OFFERED_FOR.total_seconds() >= 3 * heartbeat.EVERY * heartbeat.OFFER_EVERY


def test_a_task_for_a_known_target_is_taken_while_no_worker_is_there(offered, client, age):
    age("billing.charge", 3600)
    body = {"target": "billing.charge", "args": ["c", 1], "schedule": HOURLY}
    assert client.post(URL, json=body).status_code == 201


def test_a_target_that_nobody_knows_is_refused(offered, client):
    body = {"target": "billing.refund", "schedule": HOURLY}
    assert refused(client.post(URL, json=body)) == {
        "target": ["No worker offers 'billing.refund'. GET /targets lists what can be called."]
    }


MISFITS = [
    ([], {}, {"kwargs": {"customer": ["billing.charge needs it."], "amount": ["billing.charge needs it."]}}),
    (["c", 1, "x"], {}, {"args": ["billing.charge takes 2, 3 are given."]}),
    (["c", 1], {"customer": "d"}, {"kwargs": {"customer": ["It is given twice: args hold it too."]}}),
    (
        ["c"],
        {"ammount": 1},
        {
            "kwargs": {
                "ammount": ["billing.charge does not take it. Did you mean amount?"],
                "amount": ["billing.charge needs it."],
            }
        },
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "says"), MISFITS)
def test_arguments_that_do_not_fit_are_refused_by_name_wherever_they_are_sent(
    offered, client, register, args, kwargs, says
):
    given = {"args": args, "kwargs": kwargs}
    body = {"target": "billing.charge", "schedule": HOURLY}
    assert refused(client.post(URL, json=body | given)) == says
    fine = body | {"args": ["c", 1]}
    assert refused(client.post(f"{URL}/bulk", json={"items": [fine, body | given]})) == {"items": {"1": says}}
    assert client.get(URL).json["items"] == []
    task = register(target="billing.charge", kwargs={"customer": "c", "amount": 1})
    assert refused(client.patch(f"{URL}/{task['id']}", json=given)) == says
    assert refused(client.post(f"{URL}/{task['id']}/run", json=given)) == says
    assert client.get(f"{URL}/{task['id']}/runs").json["items"] == []


def test_a_change_is_held_against_what_stays_of_the_task(offered, client, register):
    task = register(target="billing.charge", kwargs={"customer": "c", "amount": 1})
    address = f"{URL}/{task['id']}"
    assert refused(client.patch(address, json={"args": ["d"]})) == {
        "kwargs": {"customer": ["It is given twice: args hold it too."]}
    }
    assert set(refused(client.patch(address, json={"target": "mail.send"}))["kwargs"]) == {"customer", "amount", "to"}
    both = {"target": "mail.send", "kwargs": {"to": "d"}}
    assert client.patch(address, json=both).status_code == 200


def test_a_change_of_something_else_is_taken_even_where_the_target_has_changed(offered, client, register):
    task = register(target="billing.charge", args=["c", 1], kwargs={"note": "x"})
    heartbeat.offer([charge_anew])
    address = f"{URL}/{task['id']}"
    assert client.patch(address, json={"priority": 7}).status_code == 200
    assert client.post(f"{address}/run").status_code == 202
    assert set(refused(client.patch(address, json={"args": ["d", 2]}))["kwargs"]) == {"note"}


def test_arguments_are_not_checked_where_nobody_has_told_what_fits(database, client):
    with db.transaction() as session:
        session.execute(text("UPDATE targets SET parameters = NULL"))
    body = {"target": "debug.sleep", "kwargs": {"anything": 1}, "schedule": HOURLY}
    assert client.post(URL, json=body).status_code == 201
    assert listed(client, "debug.sleep")["parameters"] is None
