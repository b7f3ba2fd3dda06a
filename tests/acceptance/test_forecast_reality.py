"""The forecast against reality: a slice of a made-up day, run compressed on real processes."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from stack import parse
from stores import BY_HAND, poll

pytestmark = BY_HAND

MINUTES = 12
FACTOR = 24.0
SEED = 1
"""Of a slice that has quiet minutes, full ones, and late ones for each reason."""


@pytest.fixture(scope="module")
def stack(make_stack):
    made = make_stack("redis")
    made.start("web")
    made.start("beat", 1)
    made.start("worker", options="--concurrency=2")
    made.wait_ready()
    yield made
    made.stop_all()


def test_the_minutes_that_are_said_to_be_late_are_those_that_are(database, stack):
    from app import db  # noqa: PLC0415 - only after the environment stands
    from bench import days  # noqa: PLC0415

    # the day is forecast in the database of this process, where nothing runs
    with db.transaction() as session:
        day = days.simulated(session, MINUTES, SEED)
    assert 2 <= len(day.late) <= MINUTES - 4
    begin = datetime.now(UTC) + timedelta(seconds=3)
    bodies = days.compressed(day, begin, FACTOR)
    answer = stack.api.post("/tasks/bulk", json={"items": bodies})
    assert answer.status_code == httpx.codes.CREATED, answer.text

    def started():
        items, after = [], ""
        while after is not None:
            page = stack.api.get("/runs", params={"limit": 200, "since": begin.isoformat(), "after": after}).json()
            items, after = items + page["items"], page["next"]
        done = len(items) == len(bodies) and all(run["started_at"] for run in items)
        return [(parse(run["scheduled_for"]), parse(run["started_at"])) for run in items] if done else None

    runs = poll(started, within=MINUTES * 60 / FACTOR + 20, every=1)
    late = days.were_late(begin, runs, FACTOR)
    precision, recall = days.score(day, late)
    print(f"said {sorted(day.late)}, were {sorted(late)}: precision {precision:.0%}, recall {recall:.0%}")
    assert precision >= 0.75
    assert recall >= 0.6  # a busy machine makes a minute late that need not be
