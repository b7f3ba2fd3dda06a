"""Apps of other people on the same broker, as real processes: one calls us, one is called."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import httpx
import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu import Connection, Queue
from nodes import Worker, WorkerContainer
from stores import ROOT, need, poll
from test_workers import channel, headers, is_amqp, send, take

STRANGERS = ROOT / "tests/strangers"
OPTIONS = {"global_keyprefix": "punctual:broker:"}


@pytest.fixture
def app(stack):
    """An app as anybody has one. On RabbitMQ it sets nothing but the two addresses."""
    made = Celery("anybody", broker=stack.env["BROKER_URL"], backend="rpc://", set_as_current=False)
    if not is_amqp(stack):
        made.conf.broker_transport_options = OPTIONS
    yield made
    if made.backend.result_consumer._consumer:
        made.backend.result_consumer.stop()
    made.close()


@pytest.fixture
def ask(app):
    """Calls us and waits for the answer."""

    def call(which, /, **given):
        return app.send_task(f"punctual.{which}", kwargs=given, queue="punctual").get(timeout=15)

    return call


@pytest.fixture(scope="module")
def strangers_env(stack):
    options = {} if is_amqp(stack) else {"BROKER_TRANSPORT_OPTIONS": json.dumps(OPTIONS)}
    kept = {name: stack.env[name] for name in ("PATH", "BROKER_URL")}
    return kept | options | {"PYTHONPATH": str(STRANGERS)}


@pytest.fixture
def billing(stack, strangers_env):
    """The worker of another app, and a Punctual that knows its targets."""
    with knowing(stack, "billing.*@billing"), serving(stack, strangers_env):
        yield


def only_rabbitmq(stack):
    if not is_amqp(stack):
        pytest.skip("only RabbitMQ has permissions, and queues with arguments")


@contextmanager
def knowing(stack, targets):
    """Restarts what reads the setting, with it."""
    processes = [("web", 1), ("beat", 1), ("worker", 1)]
    env = {"PUNCTUAL_EXTERNAL_TARGETS": targets}
    restart(stack, processes, **env)
    try:
        yield
    finally:
        restart(stack, processes)


def restart(stack, processes, **env):
    for name, number in processes:
        stack.stop(name, number)
        started = stack.start(name, number, **env)
        if name == "worker":  # its targets are known from before, so `wait_ready` does not wait for it
            poll(started.ready, within=60, every=0.1)
    if ("beat", 2) in stack.nodes:
        stack.stop("beat", 2)
    stack.wait_ready()


@pytest.fixture(scope="module")
def confined(stack):
    """The broker's address for a user who may do what the documentation says, and nothing else."""
    only_rabbitmq(stack)
    need("rabbitmqctl and the right to use it", there=shutil.which("rabbitmqctl"))
    commands = re.search(r"<!-- permissions -->\n```sh\n(.*?)```", (ROOT / "docs/celery.md").read_text(), re.DOTALL)[1]
    url = urlsplit(stack.env["BROKER_URL"])
    user, vhost = f"billing{uuid4().hex[:8]}", unquote(url.path[1:]) or "/"
    env = os.environ | {"PASSWORD": "a-password", "VHOST": vhost}
    made = subprocess.run(
        ["bash", "-ec", commands.replace(" billing ", f" {user} ")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    need(f"rabbitmqctl that works: {made.stderr}", there=made.returncode == 0)
    try:
        yield url._replace(netloc=f"{user}:a-password@{url.hostname}:{url.port or 5672}").geturl()
    finally:
        subprocess.run(["rabbitmqctl", "delete_user", user], check=True, capture_output=True)


@contextmanager
def serving(stack, env):
    command = ["celery", "-A", "billing", "worker", "--concurrency=1", "--loglevel=INFO"]
    node = Worker(WorkerContainer(stack.engine.python("billing", command, env, STRANGERS)), stack.app)
    try:
        poll(node.ready, within=30)
        yield node
    finally:
        node.kill(signal.SIGTERM)
        node.container.wait(within=20)
        node.teardown()


def test_an_app_with_nothing_of_ours_registers_a_task_and_reads_it_back(stack, strangers_env):
    command = [sys.executable, str(STRANGERS / "caller.py")]
    told = [
        subprocess.run(command, env=strangers_env, capture_output=True, text=True, check=False, timeout=60)
        for _ in range(2)
    ]
    assert [said.stderr for said in told] == ["", ""]
    first, again = (json.loads(said.stdout) for said in told)
    assert first["registered"] == again["registered"] == first["read"]["id"]
    assert first["read"]["target"] == "debug.echo"
    assert stack.api.get(f"/tasks/{first['registered']}").json() == first["read"] == again["read"]
    assert first["refused"] == again["refused"]
    assert "target: No worker offers 'no.such.target'" in first["refused"]
    assert "ValueError" in first["refused"]
    assert stack.api.delete(f"/tasks/{first['registered']}").status_code == httpx.codes.NO_CONTENT


def test_each_call_does_what_its_name_says_and_answers_as_rest_does(stack, ask):
    task = ask("create_task", target="debug.echo", schedule={"type": "interval", "every": 3600}, kwargs={"n": 1})
    name = task["name"]
    read = task | {"target_available": True}
    assert read == ask("get_task", task=name) == ask("get_task", task=task["id"])
    assert ask("change_task", task=name, priority=9)["priority"] == 9
    assert ask("pause_task", task=name, note="why")["note"] == "why"
    assert ask("resume_task", task=name)["state"] == "active"
    run = ask("run_task", task=name, kwargs={"n": 2})
    [ended] = stack.ended(task)
    assert ended["id"] == run["id"]
    read = ask("get_run", run=run["id"])
    assert read == stack.api.get(f"/runs/{run['id']}").json()
    assert read["result"] == {"args": [], "kwargs": {"n": 2}}
    assert ask("delete_task", task=name)["state"] == "deleted"
    with pytest.raises(LookupError, match=r"^There is no such task\.$"):
        ask("get_task", task=name)


def test_what_rest_refuses_a_call_refuses_in_the_same_words(stack, ask):
    given = {
        "target": "debug.echo",
        "schedule": {"type": "cron", "expression": "61 * * * *"},
        "priority": "high",
        "x": 1,
    }
    with pytest.raises(ValueError, match="Some fields are not valid") as caught:
        ask("create_task", **given)
    rest = stack.api.post("/tasks", json=given).json()["errors"]
    assert rest.keys() == {"priority", "x"}
    for field, [sentence] in rest.items():
        assert f"{field}: {sentence}" in str(caught.value)
    assert type(caught.value) is ValueError


def test_a_call_that_wants_no_answer_is_done_all_the_same(stack):
    with Celery("mute", broker=stack.env["BROKER_URL"], set_as_current=False) as mute:
        mute.conf.broker_transport_options = {"confirm_publish": True} if is_amqp(stack) else OPTIONS
        fields = {"name": "unanswered", "target": "debug.echo", "schedule": {"type": "interval", "every": 3600}}
        mute.send_task("punctual.create_task", kwargs=fields, queue="punctual")
    [task] = poll(lambda: stack.api.get("/tasks", params={"q": "unanswered"}).json()["items"])
    assert stack.api.delete(f"/tasks/{task['id']}").status_code == httpx.codes.NO_CONTENT


@pytest.mark.parametrize("queue", ["punctual", Queue("default", no_declare=True)], ids=["calls", "default"])
def test_a_target_can_be_called_directly_and_answers_or_raises(app, stack, queue):
    assert app.send_task("debug.echo", args=[1], queue=queue).get(timeout=15) == {"args": [1], "kwargs": {}}
    with pytest.raises(RuntimeError, match="fails, as asked"):
        app.send_task("debug.fail", queue=queue).get(timeout=15)
    assert not [run for run in stack.api.get("/runs").json()["items"] if run["target"] == "debug.fail"]


def test_a_call_that_cannot_be_read_is_parked_and_not_lost(stack):
    with channel(stack) as to:
        send(to, b"not json at all", headers=headers("punctual.create_task"), queue="punctual")
    assert poll(lambda: take(stack, "punctual.dead")).body in {b"not json at all", "not json at all"}


def test_no_call_is_offered_as_a_target(stack):
    assert not [t for t in stack.api.get("/targets").json()["items"] if t["name"].startswith("punctual.")]


def test_another_apps_target_runs_there_and_its_answer_is_recorded(stack, billing):
    charge = {"target": "billing.charge", "schedule": {"type": "now"}}
    good = stack.create(**charge, args=["anna", 500])
    bad = stack.create(**charge, args=["anna", -1], retry={"max_attempts": 2, "backoff": 0.1})
    assert good["queue"] == "billing"
    [run] = stack.ended(good)
    assert (run["state"], run["result"]) == ("succeeded", {"customer": "anna", "charged": 500})
    assert run["started_at"] is run["lateness_ms"] is None
    assert "@" in run["worker"]
    [run] = stack.ended(bad)
    assert (run["state"], run["reason"], run["attempt"]) == ("failed", "error", 2)
    read = stack.api.get(f"/runs/{run['id']}").json()
    assert [attempt["outcome"] for attempt in read["attempts"]] == ["failed", "failed"]
    assert run["id"] in read["error"]["message"]


def test_an_app_with_no_more_rights_than_it_needs_calls_and_is_called(stack, confined, strangers_env):
    env = strangers_env | {"BROKER_URL": confined}
    with (
        knowing(stack, "billing.*@billing"),
        serving(stack, env),
        Celery("billing", broker=confined, backend="rpc://", set_as_current=False) as app,
    ):
        app.conf.task_default_queue = "billing"

        def ask(name, **given):
            sent = app.send_task(f"punctual.{name}", kwargs=given, exchange="punctual", routing_key="punctual")
            return sent.get(timeout=15)

        fields = {"target": "billing.charge", "schedule": {"type": "now"}, "args": ["anna"]}
        good = ask("create_task", **fields, kwargs={"cents": 1})
        bad = ask("create_task", **fields, kwargs={"cents": -1})
        assert [stack.ended(task)[0]["state"] for task in (good, bad)] == ["succeeded", "failed"]
        app.backend.result_consumer.stop()


@pytest.mark.parametrize(
    "what",
    [
        lambda to: to.basic_get("default"),
        lambda to: to.basic_get("punctual"),
        lambda to: to.queue_delete("punctual"),
        lambda to: to.queue_declare("default", durable=True, auto_delete=False),
        lambda to: to.queue_purge("default"),
        lambda to: publish(to, "", "default"),
        lambda to: publish(to, "", "punctual"),
        lambda to: publish(to, "celery.pidbox", ""),
        lambda to: to.queue_bind("billing.spy", exchange="celeryev", routing_key="#"),
    ],
    ids=["take a run", "take a call", "delete", "declare", "purge", "forge a run", "send", "command", "watch"],
)
def test_a_confined_app_may_do_nothing_else(stack, confined, what):
    with Connection(confined) as connection:
        to = connection.default_channel
        to.queue_declare("billing.spy", durable=True, auto_delete=False)
        with pytest.raises(AccessRefused):
            what(to)
        connection.default_channel.queue_delete("billing.spy")


def publish(to, exchange, routing_key):
    to.basic_publish_confirm(to.prepare_message(b"[[], {}, {}]"), exchange=exchange, routing_key=routing_key)


def test_a_queue_of_calls_that_is_somebody_elses_making_stops_no_run(stack, task_of, ask):
    only_rabbitmq(stack)
    stack.stop("worker")
    with channel(stack) as to:
        to.queue_delete("punctual")
        to.queue_declare("punctual", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        poll(stack.start("worker").ready, within=60, every=0.1)
        [run] = stack.ended(task_of(schedule={"type": "now"}), within=20)
        assert run["state"] == "succeeded"
        assert "queue punctual cannot be consumed" in stack.tail("worker")
        to.queue_delete("punctual")
    # an app that has declared the queue before does not do so again: what it sends before it is there is gone
    poll(lambda: "Started consuming from punctual" in stack.tail("worker"), within=20)
    assert ask("get_run", run=run["id"])["id"] == run["id"]
