"""A worker that is told to stop: nothing is lost, nothing counts as failed, and what waits goes elsewhere at once."""

import signal
import time

import pytest
from stores import BROKER, poll
from test_scaling import all_ended, burst, states


@pytest.fixture(scope="module")
def stack(make_stack):
    """A stack without a worker, on RabbitMQ where there is one."""
    made = make_stack(BROKER)
    made.start("web")
    made.start("beat")
    yield made
    made.stop_all()


@pytest.fixture
def worker(stack):
    """Starts a worker of one process, that holds up to four messages."""
    started = []

    def start(number, **env):
        node = stack.start("worker", number, options="--concurrency=1 --prefetch-multiplier=4", **env)
        started.append(number)
        poll(node.ready, within=60)
        return node

    yield start
    for number in started:
        stack.stop("worker", number)


def running(stack, task):
    return [run for run in stack.runs(task) if run["state"] == "running"]


def sleeper(stack, seconds, **fields):
    return stack.create(target="debug.sleep", kwargs={"seconds": seconds}, schedule={"type": "now"}, **fields)


def test_a_run_longer_than_the_grace_is_given_back_and_tried_elsewhere_without_counting(stack, worker):
    first = worker(1, PUNCTUAL_STOP_GRACE="1")
    task = sleeper(stack, 8)  # a single attempt is allowed
    poll(lambda: running(stack, task))
    start = time.monotonic()
    assert stack.stop("worker", 1, within=10) == 0
    print(f"the worker was gone after {time.monotonic() - start:.1f} s of a grace of 1 s")
    second = worker(2)
    [run] = stack.ended(task)
    read = stack.api.get(f"/runs/{run['id']}").json()
    assert [attempt["outcome"] for attempt in read["attempts"]] == ["given_back", "succeeded"]
    assert (read["state"], read["reason"], read["error"]) == ("succeeded", None, None)
    assert [attempt["worker"] for attempt in read["attempts"]] == [first.hostname(), second.hostname()]
    stack.stop("worker", 2)


def test_what_has_not_started_is_given_back_at_once_and_what_runs_may_end(stack, worker):
    worker(3)
    first = sleeper(stack, 20)  # less than the grace
    poll(lambda: running(stack, first))
    waiting = burst(stack, 3, seconds=0)
    poll(lambda: {state for state, _ in states(stack, waiting)} == {"queued"})
    poll(lambda: stack.depth() == 0)
    stack.nodes["worker", 3].kill(signal.SIGTERM)
    start = time.monotonic()
    poll(lambda: stack.depth() >= 3, within=12)  # a canary may wait among them
    print(f"what waited was back after {time.monotonic() - start:.1f} s")
    assert running(stack, first)
    assert stack.nodes["worker", 3].container.wait(within=40) == 0
    [run] = stack.ended(first, within=1)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    worker(4)
    poll(lambda: all_ended(stack, waiting))
    assert {attempt for _, attempt in states(stack, waiting)} == {1}
    stack.stop("worker", 4)


def test_rolling_restarts_under_load_lose_nothing_and_fail_nothing(stack, worker):
    worker(5)
    worker(6)
    tasks = set()
    for number in (7, 8, 9):
        tasks |= burst(stack, 30, seconds=0.05)
        worker(number)
        tasks |= burst(stack, 30, seconds=0.05)
        assert stack.stop("worker", number - 2, within=10) == 0
    poll(lambda: all_ended(stack, tasks), within=20, every=0.2)
    assert {attempt for _, attempt in states(stack, tasks)} == {1}


def test_a_worker_of_a_name_that_still_stands_is_ready_about_as_soon_and_neither_ends(stack):
    ends = []
    for number in (11, 12):
        start = time.monotonic()
        poll(stack.start("worker", number, options="--concurrency=1 --hostname=same@here").ready, within=60)
        ends.append(time.monotonic() - start)
    print(f"ready after {ends[0]:.1f} and {ends[1]:.1f} s")
    assert ends[1] < 2 * ends[0] + 10
    task = sleeper(stack, 0)
    [run] = stack.ended(task)
    assert run["state"] == "succeeded"
    for number in (11, 12):
        assert not stack.nodes["worker", number].container.has_ended()
        assert stack.stop("worker", number) == 0
        assert "Traceback" not in stack.tail("worker", number, lines=1000)
