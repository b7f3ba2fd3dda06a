"""Who is there, what waits and what was set aside, as `GET /cluster` and dispatching see it."""

from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
from kombu import Connection
from sqlalchemy import func, select, update

from app import broker, db, dispatch, nodes
from app.models import Node, Run, Task
from app.states import NodeKind
from workers.heartbeat import Heartbeat

pytestmark = pytest.mark.usefixtures("database")

CLUSTER = "/api/v1/cluster"
NOTHING = {"queues": [], "entries": []}


def announce(name, kind=NodeKind.WORKER, uptime=10, **details):
    if kind == NodeKind.BEAT:
        details = {"role": "standby", "buckets": [], "last_tick_age": 0.1, "set_aside": NOTHING} | details
    else:
        details = {"queues": ["default"], "processes": 2, "running": 0, "versions": {}} | details
    with db.statement() as session:
        nodes.announce(session, kind, name, timedelta(seconds=uptime), details)


def age(name, seconds):
    """Makes a node one that was last seen some seconds ago."""
    with db.transaction() as session:
        seen_at = func.clock_timestamp() - timedelta(seconds=seconds)
        session.execute(update(Node).where(Node.name == name).values(seen_at=seen_at))


def names():
    with db.transaction() as session:
        return set(session.scalars(select(Node.name)))


def processes(queue):
    with db.transaction() as session:
        return nodes.processes(session).get(queue, 0)


def queue_of(client, name):
    return next(queue for queue in client.get(CLUSTER).json["queues"] if queue["name"] == name)


def test_an_empty_cluster_has_its_own_queues_and_nobody(client):
    answer = client.get(CLUSTER)
    assert answer.status_code == 200
    assert (answer.json["beats"], answer.json["workers"]) == ([], [])
    assert [queue["name"] for queue in answer.json["queues"]] == ["default", "punctual", "punctual.dead"]
    assert answer.json["set_aside"] == {"tasks": [], "queues": [], "entries": []}


def test_a_beat_is_shown_with_its_buckets_and_its_last_tick(client):
    announce("beat@a", NodeKind.BEAT, role="leader", buckets=[1, 5], last_tick_age=0.25)
    age("beat@a", 2)
    [beat] = client.get(CLUSTER).json["beats"]
    assert (beat["name"], beat["role"], beat["buckets"], beat["present"]) == ("beat@a", "leader", [1, 5], True)
    assert 2.25 <= beat["last_tick_age"] < 4


def test_a_worker_is_shown_with_its_load(client):
    announce("celery@a", queues=["default", "reports"], processes=3, running=2, versions={"celery": "5.7.0"})
    [worker] = client.get(CLUSTER).json["workers"]
    shown = {name: worker[name] for name in ("name", "queues", "processes", "running", "versions", "present")}
    assert shown == {
        "name": "celery@a",
        "queues": ["default", "reports"],
        "processes": 3,
        "running": 2,
        "versions": {"celery": "5.7.0"},
        "present": True,
    }


def test_a_node_that_is_not_seen_is_marked_then_forgotten_by_whoever_writes():
    announce("celery@gone")
    announce("celery@late")
    age("celery@gone", nodes.FORGOTTEN.total_seconds() + 1)
    age("celery@late", nodes.FORGOTTEN.total_seconds() - 5)
    announce("celery@new")
    assert names() == {"celery@late", "celery@new"}


def test_a_node_that_comes_back_after_a_long_pause_keeps_its_start(client):
    announce("celery@a", uptime=100)
    age("celery@a", 3600)
    assert client.get(CLUSTER).json["workers"][0]["present"] is False
    before = client.get(CLUSTER).json["workers"][0]["started_at"]
    announce("celery@a", uptime=3700)
    [worker] = client.get(CLUSTER).json["workers"]
    assert (worker["present"], worker["started_at"]) == (True, before)


def test_processes_are_those_of_the_workers_that_are_there_and_consume_the_queue(client):
    announce("celery@a", processes=2)
    announce("celery@b", queues=["default", "reports"], processes=8)
    announce("celery@gone", processes=16)
    announce("beat@a", NodeKind.BEAT)
    age("celery@gone", nodes.PRESENT.total_seconds() + 1)
    assert [processes(queue) for queue in ("default", "reports", "nobody's")] == [10, 8, 0]
    assert queue_of(client, "reports")["processes"] == 8


def test_a_queue_is_shown_with_its_waiting_runs_and_the_age_of_the_oldest(client, register):
    task = register(queue="reports")
    for _ in range(3):
        client.post(f"/api/v1/tasks/{task['id']}/run")
    with db.transaction() as session:
        [oldest, done, _] = session.scalars(select(Run)).all()
        oldest.fired_at -= timedelta(seconds=30)
        done.state, done.finished_at = "succeeded", done.fired_at
    queue = queue_of(client, "reports")
    assert (queue["waiting"], queue["processes"]) == (2, 0)
    assert 30 <= queue["oldest_age"] < 40
    assert queue_of(client, "default") | {"depth": 0} == {
        "name": "default",
        "depth": 0,
        "waiting": 0,
        "oldest_age": None,
        "processes": 0,
        "canary_age": None,
    }


def test_a_queue_is_shown_with_the_messages_that_lie_in_it(client, publisher):
    with broker.celery_app.connection_for_write() as connection:
        broker.queue("default")(connection.default_channel).declare()
        broker.celery_app.send_task("debug.echo", queue="default")
        assert queue_of(client, "default")["depth"] == 1
        connection.default_channel.queue_delete("default")
    assert queue_of(client, "default")["depth"] is None


def test_without_the_broker_depths_are_unknown_and_the_rest_is_shown(client, monkeypatch):
    monkeypatch.setattr(broker.celery_app.conf, "broker_read_url", "amqp://127.0.0.1:1//")
    announce("celery@a")
    answer = client.get(CLUSTER)
    assert answer.status_code == 200
    assert {queue["depth"] for queue in answer.json["queues"]} == {None}
    assert answer.json["workers"]


def test_a_task_that_cannot_be_planned_is_seen_until_somebody_acts_on_it(client, register, postbox):
    note = "Paused by Punctual: its slots cannot be computed: a person wrote this"
    imitated = register(name="imitated")
    client.post(f"/api/v1/tasks/{imitated['id']}/pause", json={"note": note})
    poisoned = [register(schedule={"type": "once", "at": "2020-01-01T00:00:00Z"}) for _ in range(3)]
    with db.transaction() as session:
        ids = [UUID(task["id"]) for task in poisoned]
        session.execute(update(Task).where(Task.id.in_(ids)).values(schedule={"type": "riddle"}))
    dispatch.fire(postbox.publish, ids)
    shown = client.get(CLUSTER).json["set_aside"]["tasks"]
    assert {task["id"] for task in shown} == {task["id"] for task in poisoned}
    assert all("cannot be computed" in task["reason"] for task in shown)
    changed, deleted, _ = (f"/api/v1/tasks/{task['id']}" for task in poisoned)
    assert client.patch(changed, json={"schedule": {"type": "interval", "every": 60}}).status_code == 200
    assert client.post(f"{changed}/resume").json["state"] == "active"
    assert client.delete(deleted).status_code == 204
    assert [task["id"] for task in client.get(CLUSTER).json["set_aside"]["tasks"]] == [poisoned[2]["id"]]


def test_what_a_beat_set_aside_is_shown_with_its_name(client):
    queue, entry = {"name": "odd", "reason": "PRECONDITION_FAILED"}, {"bucket": 3, "member": "garbage", "at": "…"}
    announce("beat@a", NodeKind.BEAT, set_aside={"queues": [queue], "entries": [entry]})
    aside = client.get(CLUSTER).json["set_aside"]
    assert (aside["queues"], aside["entries"]) == ([queue | {"beat": "beat@a"}], [entry | {"beat": "beat@a"}])


def test_a_queue_that_cannot_be_declared_is_known_to_the_publisher_until_it_can(fields, publisher, rabbitmq):
    with Connection(rabbitmq) as connection:
        connection.default_channel.queue_delete("test.odd")
        connection.default_channel.queue_declare("test.odd", durable=True, auto_delete=False)  # a classic one
        assert publisher.publish([]) == []
        assert not publisher._declare("test.odd")
        assert "PRECONDITION_FAILED" in publisher.undeclared["test.odd"]
        connection.default_channel.queue_delete("test.odd")
        assert publisher._declare("test.odd")
        assert publisher.undeclared == {}
        connection.default_channel.queue_delete("test.odd")


def test_a_worker_tells_of_itself_at_each_beat_and_takes_its_row_along_when_it_stops():
    heartbeat = Heartbeat()
    heartbeat.beats = 1  # not the first, which offers targets
    heartbeat.consumer = SimpleNamespace(
        hostname="celery-1@a", pool=SimpleNamespace(num_processes=2), controller=SimpleNamespace()
    )
    heartbeat.beat()
    assert processes("default") == 2
    with db.transaction() as session:
        details = session.get_one(Node, "celery-1@a").details
    assert details["queues"] == ["default", "punctual"]
    assert {"python", "celery"} <= details["versions"].keys()
    heartbeat.stopping.set()
    heartbeat.beat()
    assert names() == set()
