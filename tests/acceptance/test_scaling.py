"""A worker's size on the real stack: it grows with what waits, shrinks after quiet, and loses nothing by it."""

import os
import re
import time

import httpx
import pytest
from stores import BROKER, poll

CYCLES = int(os.environ.get("SCALING_CYCLES", "2"))
"""How often the campaign goes up and down; 200 in the drills."""


@pytest.fixture(scope="module")
def stack(make_stack):
    """A stack without a worker, on RabbitMQ where there is one."""
    made = make_stack(BROKER)
    made.start("web")
    made.start("beat")
    made.start("worker")  # its targets are known from here on, for as long as the tests last
    made.wait_ready()
    made.stop("worker")
    yield made
    made.stop_all()


@pytest.fixture
def worker(stack):
    """Starts a worker between the bounds 2 and 8, and stops it at the end, when it must have logged no error."""

    def start(**env):
        poll(stack.start("worker", options="--autoscale=8,2", **env).ready, within=30, every=0.1)
        assert size(stack) == 2

    yield start
    stack.stop("worker")
    assert logged(stack, "(?m)^.*(?:WorkerLost|exited with|ERROR).*$") == []


def children(stack):
    return stack.nodes["worker", 1].container.process.children()


def size(stack):
    return len(children(stack))


def burst(stack, count, seconds):
    """Registers that many tasks of one run each, for now; returns their ids."""
    body = {"target": "debug.sleep", "kwargs": {"seconds": seconds}, "schedule": {"type": "now"}}
    answer = stack.api.post("/tasks/bulk", json={"items": [body] * count})
    assert answer.status_code == httpx.codes.CREATED, answer.text
    return {task["id"] for task in answer.json()["items"]}


def states(stack, tasks):
    """The state and the attempt of each run of these tasks."""
    found, after = [], None
    while True:
        page = stack.api.get("/runs", params={"limit": 200} | ({"after": after} if after else {})).json()
        found += [(run["state"], run["attempt"]) for run in page["items"] if run["task_id"] in tasks]
        after = page["next"]
        if len(found) >= len(tasks) or not after:
            return found


def all_ended(stack, tasks):
    return [state for state, _ in states(stack, tasks)].count("succeeded") == len(tasks)


def logged(stack, pattern):
    return re.findall(pattern, stack.nodes["worker", 1].logs())


def test_twenty_long_runs_bring_up_eight_processes(stack, worker):
    worker(PUNCTUAL_AUTOSCALE_QUIET="2")
    start = time.monotonic()
    tasks = burst(stack, 20, seconds=5)  # there is need all the while, however long the forks take
    poll(lambda: size(stack) == 8, within=30, every=0.1)
    print(f"8 processes after {time.monotonic() - start:.1f} s")
    assert stack.control("stats")["pool"]["max-concurrency"] == 8
    # not at the end: while the last runs go on a canary may bring up one more
    assert len(logged(stack, r"from \d to \d processes: \d+ wait")) == 6
    poll(lambda: all_ended(stack, tasks), within=40, every=0.3)
    poll(lambda: size(stack) == 2, within=15, every=0.1)
    assert logged(stack, r"from 8 to \d processes: no more than \d needed for \d s")


def test_bounds_that_are_changed_while_it_runs_hold_at_once(stack, worker):
    worker(PUNCTUAL_AUTOSCALE_QUIET="60")
    stack.control("autoscale", max=10, min=3)
    poll(lambda: size(stack) == 3, within=10, every=0.1)
    tasks = burst(stack, 10, seconds=25)  # the first must not end before the tenth process is there
    poll(lambda: size(stack) == 10, within=30, every=0.1)  # more than it could fetch by the bound of its start
    poll(lambda: len([state for state, _ in states(stack, tasks) if state == "running"]) == 10, within=10, every=0.1)
    poll(lambda: all_ended(stack, tasks), within=90, every=0.3)
    stack.control("autoscale", max=4, min=2)
    poll(lambda: size(stack) <= 4, within=10, every=0.1)
    assert {attempt for _, attempt in states(stack, tasks)} == {1}


def test_cycles_up_and_down_lose_nothing_and_hang_nothing(stack, worker):
    worker(PUNCTUAL_AUTOSCALE_QUIET="0.2")
    tasks, ups = set(), 0
    for _ in range(CYCLES):
        tasks |= burst(stack, 6, seconds=0.7)
        poll(lambda: size(stack) > 2, within=30, every=0.1)
        # while processes leave others are sent runs: that is what must not cost one
        while size(stack) > 2:
            tasks |= burst(stack, 1, seconds=0)
            time.sleep(0.1)
        ups += 1
    poll(lambda: all_ended(stack, tasks), within=60, every=1)
    assert {attempt for _, attempt in states(stack, tasks)} == {1}
    print(f"{ups} cycles, {len(tasks)} runs")
