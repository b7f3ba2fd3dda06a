"""The drill's load, against the API as it is, as one that is away, and as one that says nothing."""

import socket
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from threading import Thread

import pytest
from sqlalchemy import func, select
from werkzeug.serving import make_server

from app import db
from app.models import Task
from drill import oracle, workload
from drill.history import Answer, Deed
from drill.oracle import Demand
from drill.workload import Workload

KEY = "punctual-test-key"
WITNESS = "http://127.0.0.1:1/"
"""Nothing is started here, so nobody listens there."""


@pytest.fixture
def api(app, database):
    """The base of an API that is served over HTTP."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/api/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def states():
    with db.transaction() as session:
        return dict(session.execute(select(Task.state, func.count()).group_by(Task.state)).all())


def test_it_registers_changes_and_deletes_and_leaves_nothing_behind(api, eventually, monkeypatch):
    monkeypatch.setattr(workload, "CHANGE_EVERY", 0.02)
    load = Workload(api, KEY, WITNESS)
    load.start()
    deeds = lambda: {call.deed for call in load.history.calls}  # noqa: E731
    eventually(lambda: Deed.DELETE in deeds() or time.sleep(0.2), within=60)
    history = load.close()
    assert deeds() == set(Deed)
    assert {call.answer for call in history.calls} == {Answer.ACKNOWLEDGED}
    assert set(states()) <= {"deleted", "completed"}


def test_about_as_many_slots_fall_due_per_second_as_was_asked(api):
    load = Workload(api, KEY, WITNESS, per_second=20)
    load.start()
    time.sleep(3)
    begin = datetime.now(UTC)
    history = load.close()
    kinds = Counter(call.schedule["type"] for call in history.calls if call.deed == Deed.REGISTER)
    recurring = [
        slot
        for slot in oracle.slots(history, begin)
        if slot.kind == "interval" and slot.due > begin - timedelta(seconds=2)
    ]
    assert kinds["cron"] == len(workload.MINUTELY)
    assert 20 <= kinds["once"] <= 60  # 10 a second
    assert 12 <= len(recurring) <= 32  # 10 a second


def test_a_burst_is_due_at_one_instant(api, monkeypatch):
    monkeypatch.setattr(workload, "BULK", 10)
    load = Workload(api, KEY, WITNESS)
    at = datetime.now(UTC) + timedelta(minutes=1)
    names = load.burst(25, at)
    assert len(set(names)) == 25
    found = oracle.slots(load.history, at + timedelta(seconds=1))
    assert {(slot.due, slot.demand) for slot in found} == {(at, Demand.MUST)}
    assert {slot.task for slot in found} == set(names)
    load.close()


def test_what_an_api_without_a_database_answers_is_unknown(api, no_database, monkeypatch):
    monkeypatch.setattr(workload, "CLOSING", 0.1)
    load = Workload(api, KEY, WITNESS)
    load.burst(3, datetime.now(UTC))
    calls = load.close().calls
    assert [(call.answer, call.status) for call in calls] == [(Answer.UNKNOWN, 503)] * 3
    assert {slot.demand for slot in oracle.slots(load.history, datetime.now(UTC))} == {Demand.MAY}


def test_a_call_that_nobody_takes_is_refused(monkeypatch):
    monkeypatch.setattr(workload, "CLOSING", 0.1)
    load = Workload("http://127.0.0.1:1/api/v1", KEY, WITNESS)
    load.burst(1, datetime.now(UTC))
    [call] = load.close().calls
    assert (call.answer, call.status) == (Answer.REFUSED, None)


def test_a_call_that_is_not_answered_is_unknown(monkeypatch):
    monkeypatch.setattr(workload, "CLOSING", 0.1)
    monkeypatch.setattr(workload, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        load = Workload(f"http://127.0.0.1:{silent.getsockname()[1]}/api/v1", KEY, WITNESS)
        load.burst(1, datetime.now(UTC))
        [call] = load.close().calls
    assert (call.answer, call.status) == (Answer.UNKNOWN, None)
    assert call.answered_at - call.asked_at >= timedelta(seconds=0.2)


def test_what_the_api_does_not_accept_is_refused(api):
    load = Workload(api, "a wrong key", WITNESS)
    load.burst(1, datetime.now(UTC))
    [call] = load.history.calls
    assert (call.answer, call.status) == (Answer.REFUSED, 401)


def test_a_task_whose_registration_was_never_answered_is_deleted_too(api):
    load = Workload(api, KEY, WITNESS)
    [name] = load.burst(1, datetime.now(UTC) + timedelta(hours=1))
    load._ids.clear()
    load._calls.clear()
    [call] = load.close().calls
    assert (call.task, call.deed, call.answer) == (name, Deed.DELETE, Answer.ACKNOWLEDGED)
