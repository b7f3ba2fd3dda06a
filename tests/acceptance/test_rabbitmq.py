"""Workers and a RabbitMQ that takes its consumers away: by a restart, and by its consumer timeout."""

import time

import nodes
import pytest
from stack import at
from stores import IN_CI, need, poll

CONSUMER_TIMEOUT = 4.0
"""Seconds; in the wild it is 30 minutes."""

PER_QUEUE = (3, 11, 15)
"""From this version on the argument that our queues carry is heard."""

CONSUMING, RAN = (20, 30) if IN_CI else (5, 10)
"""Seconds after the broker's return."""


@pytest.fixture(scope="module")
def node(engine):
    need("a RabbitMQ that can be started and killed", there=engine.has_rabbitmq)
    made = nodes.rabbitmq(engine, CONSUMER_TIMEOUT)
    try:
        poll(made.ready, within=90, every=0.1)
        yield made
    finally:
        made.teardown()


@pytest.fixture(scope="module")
def stack(make_stack, node):
    made = make_stack("own", node.config()["host_url"])
    made.start("web")
    made.start("beat")
    made.start("worker", options="--concurrency=2")
    made.wait_ready()
    yield made
    made.stop_all()


def processes(stack):
    """The worker and its children: who they are."""
    worker = stack.nodes["worker", 1].container.process
    return {process.pid for process in [worker, *worker.children()]}


def sleeper(stack, seconds, **schedule):
    return stack.create(target="debug.sleep", kwargs={"seconds": seconds}, schedule=schedule or {"type": "now"})


def test_a_run_longer_than_the_consumer_timeout_is_recorded_once_by_the_same_process(stack, node):
    before = processes(stack)
    task = sleeper(stack, CONSUMER_TIMEOUT * 3)
    neighbours = [sleeper(stack, 0, type="once", at=at(n)) for n in range(1, 12)]
    [run] = stack.ended(task, within=40)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    assert len(stack.api.get(f"/runs/{run['id']}").json()["attempts"]) == 1
    late = [stack.ended(neighbour)[0]["lateness_ms"] for neighbour in neighbours]
    print(f"its neighbours were at most {max(late):.0f} ms late")
    assert max(late) < 10_000
    assert processes(stack) == before
    cut_off = "PRECONDITION_FAILED" in stack.tail("worker", lines=1000)
    assert cut_off is (node.container.server_version() < PER_QUEUE)
    poll(lambda: stack.depth() == 0)


def test_workers_consume_again_within_five_seconds_of_the_brokers_return(stack, node):
    before = processes(stack)
    task = sleeper(stack, 20)
    poll(lambda: [run for run in stack.runs(task) if run["state"] == "running"])
    load = stack.create(schedule={"type": "interval", "every": 1}, overlap="allow", catchup={"policy": "all"})
    poll(lambda: [run for run in stack.runs(load) if run["state"] == "succeeded"])
    node.kill()
    node.restart()
    poll(node.ready, within=90, every=0.1)
    start = time.monotonic()
    poll(node.container.consumers, within=CONSUMING, every=0.05)
    print(f"consuming again {time.monotonic() - start:.1f} s after the broker's return")
    fresh = sleeper(stack, 0)
    assert stack.ended(fresh, within=RAN)[0]["state"] == "succeeded"
    assert processes(stack) == before
    [run] = stack.ended(task, within=30)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    stack.api.post(f"/tasks/{load['id']}/pause", json={"note": "enough"})
    runs = stack.ended(load)
    assert {(run["state"], run["attempt"]) for run in runs} == {("succeeded", 1)}
