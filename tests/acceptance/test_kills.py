"""Processes of a worker, and workers, killed at random under load: every run ends, and what was interrupted goes on."""

import os
import random
import signal
import statistics
import time
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from stores import BROKER, poll

KILLS = int(os.environ.get("KILLS", "1"))
"""How many of each; 50 in the drills, which want a machine that has nothing else to do."""

DRILL = KILLS > 1
PER_SECOND = 50 if DRILL else 10
WITHIN = 5.0 if DRILL else 30.0
"""Seconds after a kill in which what it interrupted must have started again."""

WORKERS = (1, 2)


@pytest.fixture(scope="module")
def stack(make_stack):
    """A stack with two workers of two processes each, on RabbitMQ where there is one."""
    made = make_stack(BROKER)
    for name in ("web", "beat"):
        made.start(name)
    for number in WORKERS:
        start_worker(made, number)
    made.wait_ready()
    yield made
    made.stop_all()


def start_worker(stack, number):
    poll(stack.start("worker", number, options="--concurrency=2").ready, within=30, every=0.1)


def kill_process(stack, number):
    """Kills one of a worker's processes, which replaces it. Returns when."""
    victims = poll(stack.nodes["worker", number].container.process.children, within=20)
    random.choice(victims).kill()
    return datetime.now(UTC)


def kill_worker(stack, number):
    """Kills a worker with its processes, and starts another one, as whoever supervises it does. Returns when."""
    stack.stop("worker", number, sig=signal.SIGKILL)
    at = datetime.now(UTC)
    start_worker(stack, number)
    return at


def gaps(stack, interrupted, kills):
    """Seconds from the kill that interrupted an attempt to the start of the next one."""
    for run in interrupted:
        tries = stack.api.get(f"/runs/{run['id']}").json()["attempts"]
        for attempt, following in pairwise(tries):
            assert attempt["outcome"] == "lost"
            began, again = (datetime.fromisoformat(each["started_at"]) for each in (attempt, following))
            waited = (again - min(at for at in kills if at >= began)).total_seconds()
            if waited > WITHIN:
                print(f"\nlong: {run['id']}", attempt, following, [at for at in kills if began <= at <= again])
            yield waited


def test_every_run_ends_once_and_what_a_kill_interrupted_starts_again_in_time(stack, task_of):
    fields = {
        "target": "debug.sleep",
        "kwargs": {"seconds": 0.02},
        "schedule": {"type": "interval", "every": 1},
        "overlap": "allow",
        "catchup": {"policy": "all"},
        "retry": {"max_attempts": 5, "backoff": 0},
    }
    tasks = [task_of(**fields) for _ in range(PER_SECOND)]
    strikes = [kill_process, kill_worker] * KILLS
    random.shuffle(strikes)
    kills = []
    for strike in strikes:
        time.sleep(random.uniform(0.5, 2.5))
        kills.append(strike(stack, random.choice(WORKERS)))
    for task in tasks:
        stack.api.post(f"/tasks/{task['id']}/pause").raise_for_status()
    runs = [run for task in tasks for run in stack.ended(task, within=60)]
    assert {run["state"] for run in runs} == {"succeeded"}
    assert len({(run["task_id"], run["scheduled_for"]) for run in runs}) == len(runs)
    interrupted = [run for run in runs if run["attempt"] > 1]
    waited = list(gaps(stack, interrupted, kills))
    print(f"{len(kills)} kills, {len(runs)} runs, {len(waited)} attempts interrupted", end="")
    print(f"; again after {statistics.median(waited):.1f} s, {max(waited):.1f} s at most" if waited else "")
    assert max(waited, default=0) <= WITHIN
