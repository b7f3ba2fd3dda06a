"""Packs on real processes: what kills, hangs or dies in one takes only itself along."""

import os
import signal

import psycopg
import pytest
from stack import at
from stores import ON_ONE_BROKER, poll

pytestmark = ON_ONE_BROKER

MODULE = '''
import os, signal, time
from celery import shared_task

@shared_task(name="member", bind=True)
def member(self, how=None):
    """Does as it is told; returns whether it came in a pack."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(8)
    if how == "slow":
        time.sleep(0.05)
    return not self.request.delivery_info

@shared_task(name="sleeper")
def sleeper(how=None):
    """Takes too long to be waited behind."""
    time.sleep(0.1)
'''


@pytest.fixture(scope="module")
def packing(stack, tmp_path_factory):
    """The stack with a target that does as it is told."""
    folder = tmp_path_factory.mktemp("member")
    (folder / "members.py").write_text(MODULE)
    stack.stop("worker")
    path = os.pathsep.join([str(folder), stack.env.get("PYTHONPATH", "")])
    given = {"PUNCTUAL_TASK_MODULES": "members", "PYTHONPATH": path}
    stack.start("worker", **given)
    poll(lambda: "member" in {target["name"] for target in stack.api.get("/targets").json()["items"]}, within=30)
    yield stack, given
    stack.stop("worker")
    stack.start("worker")


def say_quick(stack):
    """As if the target had been quick lately, however busy this machine is."""
    url = stack.env["DATABASE_URL"].replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE targets SET duration = '1 ms' WHERE name = 'member'")


def register(stack, told, target="member", **fields):
    """One task per entry, all due at once; returns their ids in that order."""
    say_quick(stack)
    slot = at(4)  # beats read the durations anew each 2 s
    items = [
        {"target": target, "kwargs": {"how": how}, "schedule": {"type": "once", "at": slot}} | fields for how in told
    ]
    answer = stack.api.post("/tasks/bulk", json={"items": items}, timeout=30)
    assert answer.status_code == 201, answer.text
    return [task["id"] for task in answer.json()["items"]]


def runs_of(stack, ids, since):
    found, after = {}, None
    while True:
        query = {"since": since, "limit": 200} | ({"after": after} if after else {})
        page = stack.api.get("/runs", params=query).json()
        found |= {run["task_id"]: run for run in page["items"]}
        after = page["next"]
        if not after:
            return [found.get(task) for task in ids]


def all_ended(stack, ids, since):
    runs = runs_of(stack, ids, since)
    ended = all(run and run["state"] in {"succeeded", "failed", "cancelled"} for run in runs)
    return runs if ended else None


def told(how, count=60, place=20):
    return [how if number == place else None for number in range(count)]


def test_a_run_that_kills_its_process_takes_no_neighbour_along(packing):
    stack, _ = packing
    since = at(0)
    ids = register(stack, told("kill"))
    runs = poll(lambda: all_ended(stack, ids, since), within=30, every=0.2)
    killed, others = runs[20], runs[:20] + runs[21:]
    assert (killed["state"], killed["reason"], killed["attempt"]) == ("failed", "lost", 1)
    assert {(run["state"], run["attempt"]) for run in others} == {("succeeded", 1)}
    assert any(run["result"] for run in others), "none of them travelled in a pack"
    assert max(run["lateness_ms"] for run in others) < 10_000


def test_a_run_that_hangs_holds_its_neighbours_up_for_seconds_only(packing):
    stack, _ = packing
    since = at(0)
    ids = register(stack, told("hang"))
    runs = poll(lambda: all_ended(stack, ids, since), within=40, every=0.2)
    assert {(run["state"], run["attempt"]) for run in runs} == {("succeeded", 1)}
    assert any(run["result"] for run in runs), "none of them travelled in a pack"
    assert max(run["lateness_ms"] for run in runs) < 10_000


def test_a_worker_that_dies_in_a_pack_loses_no_run(packing):
    stack, given = packing
    since = at(0)
    # one that its worker's heartbeat saw begin counts as an attempt; of the others nobody knows
    ids = register(stack, ["slow"] * 120, retry={"max_attempts": 2})
    poll(lambda: any(run and run["state"] == "running" for run in runs_of(stack, ids, since)), within=20)
    stack.stop("worker", sig=signal.SIGKILL)
    stack.start("worker", **given)
    runs = poll(lambda: all_ended(stack, ids, since), within=60, every=0.5)
    assert {run["state"] for run in runs} == {"succeeded"}
    assert max(run["attempt"] for run in runs) <= 2


@pytest.fixture
def one_by_one(packing):
    """The same, where beats send each run in a message of its own and no worker takes any yet."""
    stack, given = packing
    if not stack.env["BROKER_URL"].startswith("amqp"):
        pytest.skip("only AMQP has a prefetch to be set")
    stack.stop("worker")
    for number in (1, 2):
        stack.stop("beat", number)
        stack.start("beat", number, PUNCTUAL_PACKS="off")
    yield stack, given
    for number in (1, 2):
        stack.stop("beat", number)
        stack.start("beat", number)


def test_quick_runs_that_waited_one_by_one_are_fetched_and_packed_by_the_worker(one_by_one):
    """Among them one that kills its process, and slow ones: neither harms the others, and no message is parked."""
    stack, given = one_by_one
    since = at(0)
    quick = register(stack, told("kill", count=700, place=600))
    # in that order: where a slow one is met, nothing is fetched ahead for a while
    poll(lambda: stack.depth() >= len(quick), within=60, every=0.2)
    slow = register(stack, [None] * 10, target="sleeper")
    quick += register(stack, told(None, count=200))
    poll(lambda: stack.depth() >= len(quick) + len(slow), within=60, every=0.2)  # a canary may wait there too
    stack.start("worker", **given)
    runs = poll(lambda: all_ended(stack, quick + slow, since), within=60, every=0.5)
    killed = runs.pop(600)
    assert (killed["state"], killed["reason"], killed["attempt"]) == ("failed", "lost", 1)
    assert {(run["state"], run["attempt"]) for run in runs} == {("succeeded", 1)}
    packed = sum(run["result"] is True for run in runs)
    assert packed > len(quick) / 3, f"only {packed} were packed"
    assert stack.depth("punctual.dead") == 0
