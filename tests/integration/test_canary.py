"""The canary: on each queue a task of Punctual's own, and what is said where it falls silent."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from firing import summarise
from sqlalchemy import func, select, update

from app import canary, db, dispatch, nodes, runs, tasks
from app.messages import CANARY
from app.models import Run, Task
from app.states import NodeKind, TaskState, Trigger
from web.api import health

pytestmark = pytest.mark.usefixtures("database")

TASKS = "/api/v1/tasks"


def work_on(*queues, name="celery@a", can=(CANARY,)):
    with db.statement() as session:
        details = {"queues": list(queues), "processes": 2, "running": 0, "versions": {}, "system": list(can)}
        nodes.announce(session, NodeKind.WORKER, name, timedelta(seconds=1), details)


def leave(name="celery@a"):
    with db.statement() as session:
        nodes.leave(session, name)


def keep(later=timedelta(0)):
    with db.transaction() as session:
        canary.keep(session, db.now(session) + later)


def canaries():
    with db.transaction() as session:
        wanted = select(Task).where(Task.target == CANARY, Task.state != TaskState.DELETED).order_by(Task.name)
        return list(session.scalars(wanted))


def songs(later=timedelta(0)):
    with db.transaction() as session:
        return {song.queue: song for song in canary.songs(session, db.now(session) + later)}


def sing(task, ago=timedelta(0)):
    """A run of this canary that ended well some time ago, a second after its slot."""
    with db.transaction() as session:
        now = db.now(session)
        slot = now - ago - timedelta(seconds=1)
        new = runs.NewRun(id=uuid4(), task=task, slot=slot, trigger=Trigger.SCHEDULE)
        assert runs.record(session, now, [new])
        session.execute(update(Run).where(Run.id == new.id).values(state="succeeded", finished_at=now - ago))


@pytest.fixture
def bird():
    """The canary on the default queue."""
    work_on("default")
    keep()
    [task] = canaries()
    health.canaries.forget()
    return task


def test_each_queue_that_is_worked_on_has_one_canary_however_many_beats_see_to_it():
    work_on("default", "punctual", "reports")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: keep(), range(8)))
    assert [(task.name, task.queue) for task in canaries()] == [
        ("punctual.canary.default", "default"),
        ("punctual.canary.punctual", "punctual"),
        ("punctual.canary.reports", "reports"),
    ]


def test_a_queue_on_which_a_worker_of_an_earlier_release_is_gets_none():
    work_on("default", "reports")
    work_on("reports", name="celery@old", can=())
    keep()
    assert [task.queue for task in canaries()] == ["default"]


def test_a_canary_is_fired_as_any_task_is(bird, postbox):
    with db.transaction() as session:
        session.execute(update(Task).values(next_run_at=func.now()))
    fired = dispatch.fire(postbox.publish, [bird.id])
    [message] = fired.messages()
    assert (message.target, message.queue) == (CANARY, "default")
    assert fired.next_run_at[bird.id] - message.ticket.slot <= canary.EVERY


def test_it_goes_with_its_queue(bird, register):
    leave()
    sing(bird)
    keep(later=timedelta(minutes=50))
    assert canaries(), "the queue may be worked on again"
    named = register(queue="default")
    keep(later=timedelta(hours=2))
    assert canaries(), "a task names the queue: that nobody works on it is to be seen"
    with db.transaction() as session:
        tasks.delete(session, db.now(session), named["id"])
    keep(later=timedelta(hours=2))
    assert not canaries()
    work_on("default")
    keep()
    assert len(canaries()) == 1


def test_the_age_counts_from_the_last_run_that_ended_well(bird):
    assert not songs()["default"].is_silent
    assert songs(later=timedelta(seconds=46))["default"].is_silent, "it has never sung"
    sing(bird, ago=timedelta(seconds=30))
    song = songs()["default"]
    assert timedelta(seconds=30) <= song.age < timedelta(seconds=35)
    assert song.took == timedelta(seconds=1)
    assert not song.is_silent
    assert songs(later=timedelta(seconds=16))["default"].is_silent


def test_a_deep_probe_fails_while_a_canary_is_silent(bird, stranger, client):
    assert stranger.get("/readyz").status_code == 200
    sing(bird, ago=timedelta(seconds=60))
    silent = stranger.get("/readyz?deep=1")
    assert silent.status_code == 503
    [(name, [said])] = silent.json["errors"].items()
    assert name == "default"
    assert re.fullmatch(r"Silent for 6\d s\.", said)
    health.canaries.forget()
    sing(bird)
    well = stranger.get("/readyz?deep=1")
    assert well.status_code == 200
    assert well.json["canaries"]["default"] < 5
    [queue] = [each for each in client.get("/api/v1/cluster").json["queues"] if each["name"] == "default"]
    assert queue["canary_age"] < 5


def test_a_deep_probe_fails_where_no_queue_has_a_canary(stranger):
    health.canaries.forget()
    answer = stranger.get("/readyz?deep=1")
    assert (answer.status_code, answer.json["message"]) == (503, "No queue has a canary.")


def test_lists_leave_system_tasks_out_unless_their_target_is_asked_for(bird, client, task):
    sing(bird)

    def names(path, key, **query):
        return [item[key] for item in client.get(f"/api/v1{path}", query_string=query).json["items"]]

    assert names("/tasks", "name") == [task["name"]]
    assert names("/tasks", "name", target=CANARY) == ["punctual.canary.default"]
    assert names("/runs", "target") == []
    assert names("/runs", "target", task_id=bird.id) == [CANARY]
    offered = names("/targets", "name")
    assert offered
    assert CANARY not in offered
    assert client.get(f"{TASKS}/{bird.id}").json["target_available"] is None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"priority": 9}),
        ("DELETE", "", None),
        ("POST", "/pause", {}),
        ("POST", "/resume", {}),
        ("POST", "/run", {}),
    ],
)
def test_nobody_steers_a_system_task(bird, client, method, path, body):
    answer = client.open(f"{TASKS}/{bird.id}{path}", method=method, json=body)
    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")
    assert "Punctual's own" in answer.json["message"]


def test_what_is_done_to_many_tasks_leaves_system_tasks_alone(bird, client):
    for done in ("pause", "delete"):
        assert client.post(f"{TASKS}/bulk/{done}", json={"target": CANARY}).json["tasks"] == 0
    assert [task.state for task in canaries()] == [TaskState.ACTIVE]


def test_no_client_registers_one(client):
    body = {"target": CANARY, "schedule": {"type": "now"}}
    assert client.post(TASKS, json=body).json["errors"].keys() == {"target"}
    named = {"target": "debug.echo", "name": "punctual.mine", "schedule": {"type": "now"}}
    assert client.post(TASKS, json=named).json["errors"].keys() == {"name"}


def test_the_figures_of_the_promise_are_of_clients_runs_alone(bird, client):
    sing(bird)
    summarise()
    assert sum(client.get("/api/v1/stats").json["runs"].values()) == 0


def test_a_probe_may_ask_for_the_store_that_it_cannot_do_without(stranger, monkeypatch):
    monkeypatch.setattr(health, "answers", lambda ping: ping is not health.STORES["redis"])
    health.away.forget()
    assert stranger.get("/readyz").json["errors"] == {"redis": ["Does not answer."]}
    assert stranger.get("/readyz?store=redis").status_code == 503
    assert stranger.get("/readyz?store=database").json == {"status": "ready", "stores": {"database": "ready"}}
    assert stranger.get("/readyz?store=paper").status_code == 422
    health.away.forget()
