"""`shell.run` on a real worker, where it is switched on: its limits, and what is left when a worker's process dies."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from stores import poll

STUBBORN = (
    "trap '' TERM; (trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done') & while :; do sleep 1; done"
)


@pytest.fixture(scope="module")
def stack(make_stack):
    made = make_stack("redis")
    made.env["PUNCTUAL_SHELL"] = "on"
    made.start_all()
    yield made
    made.stop_all()


def processes(run):
    """What carries the run's id in its environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RUN_ID={run['id']}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def program(stack, *argv, **fields):
    return stack.create(target="shell.run", kwargs={"argv": list(argv)}, schedule={"type": "now"}, **fields)


def started(stack, task):
    """Its run, once the program and all that it starts are there."""
    [run] = poll(lambda: [run for run in stack.runs(task) if run["state"] == "running"], 15)
    poll(lambda: len(processes(run)) >= 4, 15)
    return run


def test_a_program_is_run_and_sees_none_of_the_workers_secrets(stack):
    [run] = stack.ended(program(stack, "env"))
    assert run["state"] == "succeeded"
    assert f"RUN_ID={run['id']}\n" in run["result"]["stdout"]
    for name in ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "SECRET_KEY", "PUNCTUAL_ADMIN_KEY"):
        assert name not in run["result"]["stdout"]


def test_at_its_timeout_a_program_is_gone_with_all_it_started_and_the_run_says_timeout(stack):
    task = program(stack, "sh", "-c", STUBBORN, timeout=2)
    run = started(stack, task)
    child = next(iter(stack.nodes["worker", 1].container.process.children())).pid
    [ended] = stack.ended(task)
    assert (ended["state"], ended["reason"]) == ("failed", "timeout")
    assert processes(run) == []
    assert psutil.pid_exists(child)  # the soft limit sufficed: no process of the worker's was killed


def test_nothing_of_a_program_is_left_when_the_workers_process_is_killed(stack):
    run = started(stack, program(stack, "sh", "-c", STUBBORN))
    victim = next(
        parent for pid in processes(run) for parent in psutil.Process(pid).parents() if is_child(stack, parent)
    )
    os.kill(victim.pid, signal.SIGKILL)
    poll(lambda: processes(run) == [], 10)
    ended = poll(lambda: stack.api.get(f"/runs/{run['id']}").json()["reason"], 20)
    assert ended == "lost"


def is_child(stack, process):
    return process.ppid() == stack.nodes["worker", 1].container.process.pid
