"""A stack that loses its PostgreSQL goes on from a backup, in an empty server: beside the Redis, the broker and the
messages of the time after it."""

import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import httpx
import pytest
import redis
from stack import ENDED, at, parse
from stores import BROKER, BY_HAND, ROOT, poll
from test_promise import all_runs

from beat import entries
from deploy import embedded, postgresql

pytestmark = BY_HAND

EVERY = 1
TASKS = 5


@pytest.fixture
def stack(make_stack):
    made = make_stack(BROKER)
    made.start_all(beats=1)
    yield made
    made.stop_all()


@pytest.fixture
def elsewhere():
    """The URL of a database in another, empty server."""
    with embedded.temporary() as data, postgresql.running(data) as url:
        yield url


def call(module, url, *words):
    env = os.environ | {"DATABASE_URL": url}
    argv = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_from_a_backup_each_slot_is_recorded_once_and_none_is_missing(stack, elsewhere, tmp_path):
    every = {"overlap": "allow", "catchup": {"policy": "all"}, "schedule": {"type": "interval", "every": EVERY}}
    tasks = [stack.create(**every) for _ in range(TASKS)]
    soon = stack.create(schedule={"type": "once", "at": at(40)})
    long = stack.create(
        target="debug.sleep", kwargs={"seconds": 6}, schedule={"type": "once", "at": at(2)}, retry={"max_attempts": 2}
    )
    poll(lambda: any(run["state"] == "running" for run in stack.runs(long)), within=20)
    backup = call("deploy.backup", stack.env["DATABASE_URL"], tmp_path)

    # what is done from here on is lost with the server
    far = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    for task in (tasks[0], soon):
        changed = stack.api.patch(f"/tasks/{task['id']}", json={"schedule": {"type": "once", "at": far}})
        assert changed.status_code == httpx.codes.OK
    unknown = stack.create(**every)
    poll(lambda: stack.ended(unknown, count=2))
    with redis.Redis.from_url(stack.env["REDIS_URL"]) as client:
        # the entries are of the versions that are to be lost
        poll(lambda: min(entry(client, tasks[0]), entry(client, soon)) > datetime.now(UTC).timestamp() + 86_400)
        for name, number in list(stack.nodes):
            stack.nodes[name, number].kill(signal.SIGKILL)

        call("deploy.restore", elsewhere, backup)
        stack.env["DATABASE_URL"] = elsewhere
        stack.start_all(beats=1)
        started = datetime.now(UTC)

        def caught_up():
            seen = [stack.runs(task) for task in tasks]
            return all(parse(runs[-1]["scheduled_for"]) > started + timedelta(seconds=3) for runs in seen)

        poll(caught_up, within=40, every=0.5)
        [once] = stack.ended(soon, within=45)
        assert once["state"] == "succeeded"
        if parse(once["scheduled_for"]) > started + timedelta(seconds=2):  # else the machine was too slow to tell
            assert once["lateness_ms"] < 2_500  # it was rung: the audit path takes three seconds
        [rescued] = stack.ended(long, within=20)
        assert (rescued["state"], rescued["attempt"]) == ("succeeded", 2)
        poll(lambda: slots_of_entries(client) >= {task["id"] for task in tasks}, within=10)
        assert entry(client, tasks[0]) < datetime.now(UTC).timestamp() + 60
        poll(lambda: entry(client, unknown) is None, within=10)
    for task in tasks:
        stack.api.post(f"/tasks/{task['id']}/pause")
    for task in tasks:
        runs = poll(lambda task=task: ended(stack.runs(task)), within=20, every=0.2)
        slots = [parse(run["scheduled_for"]) for run in runs]
        assert {after - before for before, after in pairwise(slots)} == {timedelta(seconds=EVERY)}
        assert {run["state"] for run in runs} == {"succeeded"}
    recorded = Counter((run["task_id"], run["scheduled_for"]) for run in all_runs(stack, at(-3600)))
    assert set(recorded.values()) == {1}
    late = [run["lateness_ms"] for run in all_runs(stack, (started + timedelta(seconds=1)).isoformat())]
    print(
        f"\n{len(recorded)} runs; those due a second after the start were up to {max(filter(None, late)):.0f} ms late"
    )
    assert max(filter(None, late)) < 10_000


def ended(runs):
    return runs if all(run["state"] in ENDED for run in runs) else None


def entry(client, task):
    """When a task's entry rings; None where it has none."""
    found = [
        score
        for bucket in range(16)
        for member, score in client.zrange(entries.schedule_key(bucket), 0, -1, withscores=True)
        if member.decode().endswith(task["id"])
    ]
    return found[0] if found else None


def slots_of_entries(client):
    members = (member for bucket in range(16) for member in client.zrange(entries.schedule_key(bucket), 0, -1))
    return {member.decode().rpartition(":")[2] for member in members}
