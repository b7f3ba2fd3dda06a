"""Each store out of reach for a while, under load: nothing lost, nothing doubled, nobody restarted."""

import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))

import links
from stack import ENDED, Stack, parse
from stores import GIVEN, need, new_database, poll

SECONDS = 24
PER_SECOND = 10
AWAY = 8.0
"""Seconds for which a store is out of reach."""


@pytest.fixture(scope="module")
def linked(template, tmp_path_factory):
    """A running stack whose three stores are reached over links."""
    need("RabbitMQ: set BROKER_URL to an amqp:// address", there=(GIVEN["BROKER_URL"] or "").startswith("amqp"))
    with new_database("punctual_links", template) as url:
        made = {
            "DATABASE_URL": links.database(url),
            "REDIS_URL": links.server(GIVEN["REDIS_URL"], 6379),
            "BROKER_URL": links.server(GIVEN["BROKER_URL"], 5672),
        }
        stack = Stack({name: over for name, (_, over) in made.items()}, tmp_path_factory.mktemp("links"))
        stack.start_all()
        yield stack, {name: link for name, (link, _) in made.items()}
        stack.stop_all()
        stack.api.close()
        for link, _ in made.values():
            link.close()


def load(stack, start):
    """Registers tasks that fall due evenly from `start` on; returns their ids."""
    items = [
        {
            "target": "debug.echo",
            "retry": {"max_attempts": 3},
            "schedule": {"type": "once", "at": (start + timedelta(seconds=n / PER_SECOND)).isoformat()},
        }
        for n in range(SECONDS * PER_SECOND)
    ]
    answer = stack.api.post("/tasks/bulk", json={"items": items}, timeout=30)
    assert answer.status_code == httpx.codes.CREATED, answer.text
    return {task["id"] for task in answer.json()["items"]}


def ask_meanwhile(stack, seconds):
    """What the API answers while a store is out of reach."""
    answers = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = stack.api.get("/tasks", params={"limit": 1}, timeout=30)
        answers[answer.status_code] += 1
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert int(answer.headers["Retry-After"]) > 0
        time.sleep(0.2)
    return answers


def all_ended(stack, since, tasks):
    """The runs of these tasks when each has one and all have ended, else None."""
    found, after = [], None
    while True:
        query = {"since": since.isoformat(), "limit": 200} | ({"after": after} if after else {})
        answer = stack.api.get("/runs", params=query, timeout=30)
        if answer.status_code != httpx.codes.OK:
            return None
        found += [run for run in answer.json()["items"] if run["task_id"] in tasks]
        after = answer.json()["next"]
        if not after:
            break
    done = {run["task_id"] for run in found} == tasks and all(run["state"] in ENDED for run in found)
    return found if done else None


@pytest.mark.parametrize("fault", ["cut", "silent"])
@pytest.mark.parametrize("store", ["DATABASE_URL", "REDIS_URL", "BROKER_URL"])
def test_a_store_out_of_reach_loses_nothing_and_doubles_nothing(linked, store, fault):
    stack, by_store = linked
    before = {key: process.pid for key, process in stack.processes.items()}
    start = datetime.now(UTC) + timedelta(seconds=3)
    tasks = load(stack, start)
    time.sleep(max(0.0, (start + timedelta(seconds=4) - datetime.now(UTC)).total_seconds()))
    with getattr(by_store[store], fault)():
        answers = ask_meanwhile(stack, AWAY)
    healed = datetime.now(UTC)
    runs = poll(lambda: all_ended(stack, start, tasks), within=SECONDS + 30, every=1)

    waited = [run for run in runs if parse(run["scheduled_for"]) < healed]
    after = max((parse(run["started_at"]) - healed).total_seconds() for run in waited)
    worst = max(run["lateness_ms"] for run in runs) / 1000
    print(
        f"\n{store} {fault} for {AWAY} s: answers {dict(answers)}, worst lateness {worst:.1f} s, "
        f"the last that waited started {after:.1f} s after the heal"
    )
    assert len(runs) == len(tasks)
    assert {run["state"] for run in runs} == {"succeeded"}
    assert answers.keys() <= {httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE}
    assert after < 10
    assert store != "REDIS_URL" or worst < 8
    assert {key: process.pid for key, process in stack.processes.items() if process.poll() is None} == before
