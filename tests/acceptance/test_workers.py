"""Workers on the real stack: what strangers send, what dies, and tasks of one's own."""

import json
import os
import re
import signal
import uuid
from contextlib import contextmanager
from itertools import pairwise

import pytest
from kombu import Connection
from stack import at, parse
from stores import ROOT, poll


@contextmanager
def channel(stack):
    with Connection(stack.env["BROKER_URL"], transport_options=options(stack)) as connection:
        yield connection.default_channel


def options(stack):
    # without a confirm, RabbitMQ loses a few in ten thousand messages whose connection is closed right behind them
    return (
        {"confirm_publish": True}
        if is_amqp(stack)
        else {"global_keyprefix": "punctual:broker:", "priority_steps": [0, 5]}
    )


def is_amqp(stack):
    return stack.env["BROKER_URL"].startswith("amqp")


def send(to, body, content_type="application/json", headers=None, queue="default"):
    properties = {"delivery_mode": 2, "correlation_id": "x", "reply_to": ""}
    made = to.prepare_message(body, 5, content_type, "utf-8", headers or {}, properties)
    to.basic_publish(made, exchange="", routing_key=queue)


def take(stack, queue):
    with channel(stack) as from_:
        return from_.basic_get(queue, no_ack=True)


def children(stack):
    return stack.nodes["worker", 1].container.process.children()


def headers(name="debug.echo", **changed):
    return {"lang": "py", "task": name, "id": str(uuid.uuid4()), "argsrepr": "()", "kwargsrepr": "{}"} | changed


def test_what_no_worker_can_read_is_parked_with_its_bytes_and_ends_no_worker(stack, task_of):
    before = [child.pid for child in children(stack)]
    hostile = [
        (b"not json at all", "application/json", headers()),
        (b"\x80\x04K\x01.", "application/x-python-serialize", headers()),
        (b'{"neither": "task"}', "application/json", {}),
        (b"[[], {}]", "application/json", headers()),
        (b"[[], {}, {}]", "application/json", {"task": "debug.echo"}),
        (b"[[], {}, {}]", "application/json", headers("no.such.target")),
        (b"[[], {}, {}]", "application/json", headers(punctual="not a ticket")),
        (b"[[], {}, {}]", "application/json", headers(punctual={"task": "x"})),
    ]
    with channel(stack) as to:
        for body, content_type, head in hostile:
            send(to, body, content_type, head)
    parked = [poll(lambda: take(stack, "punctual.dead")) for _ in (hostile if is_amqp(stack) else hostile[:-2])]
    bodies = {message.body if isinstance(message.body, bytes) else message.body.encode() for message in parked}
    assert b"not json at all" in bodies
    [run] = stack.ended(task_of(schedule={"type": "now"}))
    assert run["state"] == "succeeded"
    assert [child.pid for child in children(stack)] == before


def test_a_message_without_a_ticket_is_an_ordinary_call_and_leaves_no_run(stack):
    before = stack.api.get("/runs", params={"limit": 1}).json()["items"]
    with channel(stack) as to:
        send(to, json.dumps([["unrecorded"], {}, {}]).encode(), headers=headers())
    poll(lambda: take_depth(stack) == 0)
    assert stack.api.get("/runs", params={"limit": 1}).json()["items"] == before


def take_depth(stack):
    with channel(stack) as to:
        return to.queue_declare("default", passive=True).message_count if is_amqp(stack) else to._size("default")


def test_a_run_whose_process_is_killed_is_tried_again_within_seconds(stack, task_of):
    task = task_of(
        target="debug.sleep", kwargs={"seconds": 3}, schedule={"type": "now"}, retry={"max_attempts": 2, "backoff": 60}
    )
    poll(lambda: [run for run in stack.runs(task) if run["state"] == "running"])
    for child in children(stack):
        child.send_signal(signal.SIGKILL)
    poll(lambda: stack.runs(task)[0]["attempt"] == 2 and stack.runs(task)[0]["state"] == "running", within=10)
    [run] = stack.ended(task)
    read = stack.api.get(f"/runs/{run['id']}").json()
    assert [attempt["outcome"] for attempt in read["attempts"]] == ["lost", "succeeded"]


def test_a_run_whose_worker_is_killed_is_tried_again_by_another(stack, task_of):
    task = task_of(target="debug.sleep", kwargs={"seconds": 2}, schedule={"type": "now"}, retry={"max_attempts": 2})
    poll(lambda: [run for run in stack.runs(task) if run["state"] == "running"])
    stack.stop("worker", sig=signal.SIGKILL)
    poll(stack.start("worker").ready, within=60, every=0.1)
    [run] = stack.ended(task, within=20)
    read = stack.api.get(f"/runs/{run['id']}").json()
    assert [attempt["outcome"] for attempt in read["attempts"]] == ["lost", "succeeded"]


def test_a_run_that_kills_its_worker_is_tried_as_often_as_allowed_and_then_lost(stack, tmp_path, task_of):
    with_module(stack, tmp_path, "import os, signal\n" + module("suicide", "os.kill(os.getpid(), signal.SIGKILL)"))
    try:
        task = task_of(target="suicide", schedule={"type": "now"}, retry={"max_attempts": 2, "backoff": 0.1})
        [run] = stack.ended(task, within=40)
        assert (run["state"], run["reason"], run["attempt"]) == ("failed", "lost", 2)
    finally:
        without_module(stack)


STUBBORN = """
import time

from celery import shared_task


@shared_task(name="stubborn")
def stubborn():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except BaseException:
            continue
"""


def running(stack, task):
    return [run for run in stack.runs(task) if run["state"] == "running"]


def cancelled(stack, task, within):
    [run] = poll(lambda: running(stack, task), within=20)
    assert stack.api.post(f"/runs/{run['id']}/cancel").json()["cancelling"]
    [run] = stack.ended(task, within=within)
    return run["state"], run["reason"], run["attempt"]


def test_a_running_run_is_cancelled_and_its_process_goes_on(stack, task_of):
    task = task_of(target="debug.sleep", kwargs={"seconds": 60}, schedule={"type": "now"}, retry={"max_attempts": 3})
    poll(lambda: running(stack, task), within=20)
    before = {child.pid for child in children(stack)}
    assert cancelled(stack, task, within=10) == ("cancelled", "by_user", 1)
    assert {child.pid for child in children(stack)} == before


def test_a_run_that_does_not_yield_is_cancelled_with_its_process(stack, tmp_path, task_of):
    with_module(stack, tmp_path, STUBBORN)
    try:
        task = task_of(target="stubborn", schedule={"type": "now"}, retry={"max_attempts": 3})
        assert cancelled(stack, task, within=20) == ("cancelled", "by_user", 1)
        [other] = stack.ended(task_of(target="debug.echo", schedule={"type": "now"}))
        assert other["state"] == "succeeded"
    finally:
        without_module(stack)


def test_with_cancel_the_newest_run_takes_the_place_of_the_one_that_runs(stack, task_of):
    every = {"type": "interval", "every": 3}
    task = task_of(target="debug.sleep", kwargs={"seconds": 60}, schedule=every, overlap="cancel")
    poll(lambda: "overlap" in {run["reason"] for run in stack.runs(task) if run["state"] == "cancelled"}, within=20)
    stack.api.post(f"/tasks/{task['id']}/pause").raise_for_status()
    [run] = poll(lambda: running(stack, task))
    stack.api.post(f"/runs/{run['id']}/cancel").raise_for_status()
    assert stack.ended(task)[-1]["state"] == "cancelled"  # and no worker is kept busy by it


def test_a_module_of_ones_own_runs_as_the_readme_says(stack, tmp_path, task_of):
    source = re.search(r"<!-- my-tasks -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(source[1].strip().splitlines()) <= 10
    with_module(stack, tmp_path, source[1])
    try:
        [run] = stack.ended(task_of(target="greet", kwargs={"name": "you"}, schedule={"type": "now"}))
        assert run["result"] == "Hello, you!"
    finally:
        without_module(stack)


def module(name, statement):
    return f"from celery import shared_task\n\n@shared_task(name={name!r})\ndef {name}():\n    {statement}\n"


def with_module(stack, folder, source):
    """Restarts the worker with a module of tasks, and waits until its targets are known."""
    (folder / "own_tasks.py").write_text(source)
    stack.stop("worker")
    path = os.pathsep.join([str(folder), str(ROOT)])
    stack.start("worker", PUNCTUAL_TASK_MODULES="own_tasks", PYTHONPATH=path)
    name = re.search(r'name="?\'?(\w+)', source)[1]
    poll(lambda: any(target["name"] == name for target in stack.api.get("/targets").json()["items"]), within=60)


def without_module(stack):
    stack.stop("worker")
    poll(stack.start("worker").ready, within=60, every=0.1)


def test_what_a_target_logs_names_its_run_and_once_it_is_gone_its_runs_are_rejected(stack, tmp_path, task_of):
    with_module(stack, tmp_path, "import logging\n" + module("passing", "logging.getLogger('mine').warning('within')"))
    [run] = stack.ended(task_of(target="passing", schedule={"type": "now"}))
    line = poll(lambda: [each for each in stack.tail("worker", lines=200).splitlines() if "[mine]" in each])[0]
    assert all(
        f"{name}={value}" in line for name, value in [("run", run["id"]), ("task", run["task_id"]), ("attempt", 1)]
    )
    without_module(stack)
    [run] = stack.ended(task_of(target="passing", schedule={"type": "once", "at": at(0.5)}))
    assert (run["state"], run["reason"]) == ("failed", "rejected")
    assert "passing" in run["error"]["message"]


def delete_queue(stack, name):
    with channel(stack) as to:
        to.queue_delete(name)


def succeeded(stack, task, queue):
    return [run for run in stack.runs(task) if run["state"] == "succeeded" and run["queue"] == queue]


def only_rabbitmq(stack):
    if not is_amqp(stack):
        pytest.skip("only RabbitMQ has queues with arguments")


def test_tasks_move_to_another_queue_and_no_slot_is_late(stack, task_of):
    only_rabbitmq(stack)
    old, new = "test.moved", "test.moved.2"
    second = stack.start("worker", 2, options=f"--concurrency=1 -Q {old},{new}")
    try:
        poll(second.ready, within=60, every=0.1)
        every = {"type": "interval", "every": 1}
        task = task_of(queue=old, schedule=every, overlap="allow", catchup={"policy": "all"})
        poll(lambda: len(succeeded(stack, task, old)) >= 2)
        stack.api.patch(f"/tasks/{task['id']}", json={"queue": new}).raise_for_status()
        poll(lambda: len(succeeded(stack, task, new)) >= 3)
        delete_queue(stack, old)
        poll(lambda: len(succeeded(stack, task, new)) >= 5)
        stack.api.post(f"/tasks/{task['id']}/pause").raise_for_status()
        runs = stack.ended(task)
    finally:
        stack.stop("worker", 2)
        delete_queue(stack, new)
    slots = [parse(run["scheduled_for"]) for run in runs]
    assert {(later - slot).total_seconds() for slot, later in pairwise(slots)} == {1.0}
    assert {run["state"] for run in runs} == {"succeeded"}
    assert max(run["lateness_ms"] for run in runs) < 10_000  # the promise


def test_a_queue_that_stands_with_other_arguments_is_said_and_loses_nothing(stack, task_of):
    only_rabbitmq(stack)
    odd, fine = "test.odd", "test.fine"
    with channel(stack) as to:
        to.queue_delete(odd)
        to.queue_declare(odd, durable=True, auto_delete=False)
    second = stack.start("worker", 2, options=f"--concurrency=1 -Q {odd},{fine}")
    try:
        poll(second.ready, within=60, every=0.1)
        now = {"type": "now"}
        waiting, [run] = task_of(queue=odd, schedule=now), stack.ended(task_of(queue=fine, schedule=now), within=20)
        assert run["state"] == "succeeded"
        assert f"queue {odd} cannot be consumed" in stack.tail("worker", 2)
        told = poll(lambda: stack.api.get("/cluster").json()["set_aside"]["queues"])
        assert {(each["name"], "PRECONDITION_FAILED" in each["reason"]) for each in told} == {(odd, True)}
        assert [each["state"] for each in stack.runs(waiting)] == ["pending"]
        delete_queue(stack, odd)
        [run] = stack.ended(waiting, within=20)
        assert (run["state"], run["attempt"]) == ("succeeded", 1)
    finally:
        stack.stop("worker", 2)
        delete_queue(stack, odd)
        delete_queue(stack, fine)


def test_a_worker_stops_when_its_runs_have_ended(stack, task_of):
    # longer than a run may be without a heartbeat: a worker that stops goes on renewing it
    task = task_of(target="debug.sleep", kwargs={"seconds": 7}, schedule={"type": "now"})
    poll(lambda: [run for run in stack.runs(task) if run["state"] == "running"])
    assert stack.stop("worker") == 0
    [run] = stack.ended(task, within=1)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    stack.start("worker")
