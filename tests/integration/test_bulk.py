"""Many tasks at once: by filters, from a file and into one; and how it all went."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from firing import summarise

from app import bulk, db, queries, runs
from app.models import Run, Task
from app.states import RunState, Trigger

TASKS = "/api/v1/tasks"
HOURLY = {"type": "interval", "every": 3600, "anchor": "2026-01-01T00:00:00.000Z"}
BODY = {"target": "debug.echo", "schedule": HOURLY}
BILLING = {"labels": {"team": "billing"}}


def states(client, **wanted):
    return {task["name"]: task["state"] for task in client.get(TASKS, query_string=wanted).json["items"]}


def many(client, action, **body):
    answer = client.post(f"{TASKS}/bulk/{action}", json=body)
    assert answer.status_code == 200, answer.json
    return answer.json


@pytest.fixture
def four(register):
    for name, team in [("a", "billing"), ("b", "billing"), ("c", "sales"), ("d", "sales")]:
        register(name=name, labels={"team": team})


def test_tasks_are_paused_resumed_and_deleted_by_filter(client, four):
    assert many(client, "pause", label="team:billing", note="why") == {"tasks": 2, "more": False}
    assert states(client) == {"a": "paused", "b": "paused", "c": "active", "d": "active"}
    assert {task["note"] for task in client.get(f"{TASKS}?state=paused").json["items"]} == {"why"}
    assert many(client, "pause", label="team:billing")["tasks"] == 0
    assert many(client, "resume", label="team:billing", q="a")["tasks"] == 1
    assert states(client)["a"] == "active"
    assert many(client, "delete", state="paused")["tasks"] == 1
    assert states(client) == {"a": "active", "c": "active", "d": "active"}
    assert many(client, "delete", target="debug.echo")["tasks"] == 3
    assert states(client) == {}


@pytest.mark.parametrize("action", ["pause", "resume", "delete"])
def test_without_a_filter_nothing_is_done(client, four, action):
    for empty in ({}, {"q": ""}, {"target": "", "q": ""}):
        assert client.post(f"{TASKS}/bulk/{action}", json=empty).status_code == 422
    assert client.post(f"{TASKS}/bulk/{action}").status_code == 400
    assert set(states(client).values()) == {"active"}


def test_a_filter_that_names_more_than_one_call_may_do_says_so(client, four, monkeypatch):
    monkeypatch.setattr(bulk, "MAX_BULK", 3)
    assert many(client, "delete", target="debug.echo") == {"tasks": 3, "more": True}
    assert many(client, "delete", target="debug.echo") == {"tasks": 1, "more": False}


def test_what_waits_of_deleted_tasks_is_cancelled(client, four):
    runs_made = [client.post(f"{TASKS}/{task['id']}/run").json for task in client.get(TASKS).json["items"]]
    many(client, "delete", label="team:sales")
    ended = [client.get(f"/api/v1/runs/{run['id']}").json["state"] for run in runs_made]
    assert sorted(ended) == ["cancelled", "cancelled", "pending", "pending"]


def bring(client, items, *, dry_run=False):
    return client.post(f"{TASKS}/import", json={"items": items}, query_string={"dry_run": int(dry_run)})


def exported(client, **wanted):
    answer = client.get(f"{TASKS}/export", query_string=wanted)
    assert answer.content_type == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_what_is_exported_is_imported_as_it_was_and_changes_nothing_here(client, register):
    register(name="plain")
    register(
        name="rich",
        labels={"k": "v"},
        kwargs={"text": "né"},
        schedule={"type": "rrule", "rule": "FREQ=DAILY", "starts": "2026-01-01T00:00:00Z", "timezone": "UTC"},
        retry={"max_attempts": 3},
        starts_at="2027-01-01T00:00:00Z",
        queue="reports",
        pause_after_failures=3,
        notify={"on": ["late"], "webhook": "https://example.com/hook"},
    )
    lines = exported(client)
    assert [line["name"] for line in lines] == ["plain", "rich"]
    assert bring(client, lines).json == {"added": [], "changed": [], "left": ["plain", "rich"]}
    many(client, "delete", target="debug.echo")
    assert bring(client, lines).json == {"added": ["plain", "rich"], "changed": [], "left": []}
    assert exported(client) == lines
    assert exported(client, q="rich") == lines[1:]


def test_an_export_of_many_pages_is_whole(client, register, monkeypatch):
    monkeypatch.setattr(bulk, "MAX_BULK", 2)
    for n in range(5):
        register(name=f"one-{n}")
    assert [line["name"] for line in exported(client)] == [f"one-{n}" for n in range(5)]


def test_an_import_adds_changes_and_leaves_and_a_dry_run_only_says_so(client, register):
    register(name="left", schedule=HOURLY)
    changing = register(name="changed", schedule=HOURLY)
    client.post(f"{TASKS}/{changing['id']}/pause")
    items = [BODY | {"name": "left"}, BODY | {"name": "changed", "priority": 9, "retry": {"max_attempts": 2}}]
    items += [BODY | {"name": "added"}]
    said = bring(client, items, dry_run=True)
    assert said.json["added"] == ["added"]
    assert said.json["left"] == ["left"]
    [changed] = said.json["changed"]
    assert changed["name"] == "changed"
    assert changed["fields"]["priority"] == {"before": 5, "after": 9}
    assert changed["fields"]["retry"]["after"]["max_attempts"] == 2
    assert set(changed["fields"]) == {"priority", "retry"}
    assert set(states(client)) == {"left", "changed"}
    assert client.get(f"{TASKS}/{changing['id']}").json["version"] == 2
    assert bring(client, items).json == said.json
    assert states(client) == {"left": "active", "changed": "paused", "added": "active"}
    assert bring(client, items).json == {"added": [], "changed": [], "left": ["left", "changed", "added"]}


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "interval", "every": 60},
        {"type": "rrule", "rule": "FREQ=DAILY", "timezone": "UTC", "starts": "2026-01-01T00:00:00Z"},
        {"type": "now"},
        {"type": "cron", "expression": "@daily"},
    ],
    ids=lambda schedule: schedule["type"],
)
def test_what_a_schedule_counts_from_stays_where_an_import_does_not_name_it(client, schedule):
    item = BODY | {"name": "x", "schedule": schedule}
    assert bring(client, [item]).json["added"] == ["x"]
    assert bring(client, [item]).json["left"] == ["x"]


def test_an_import_is_all_or_nothing_and_names_the_index(client, register):
    register(name="there")
    wrong = [
        ([BODY | {"name": "a"}, BODY], {"1": ["name"]}),
        ([BODY | {"name": "a"}, BODY | {"name": "a"}], {"1": ["name"]}),
        ([BODY | {"name": "there"}, BODY | {"name": "b", "target": "no.such"}], {"1": ["target"]}),
        ([BODY | {"name": "b"}, BODY | {"name": "there", "target": "no.such"}], {"1": ["target"]}),
        (
            [BODY | {"name": "b"}, BODY | {"name": "c", "schedule": {"type": "cron", "expression": "x"}}],
            {"1": ["schedule"]},
        ),
    ]
    for items, expected in wrong:
        answer = bring(client, items)
        assert answer.status_code == 422, answer.json
        assert {index: [*found] for index, found in answer.json["errors"]["items"].items()} == expected
    assert states(client) == {"there": "active"}


def record(task, seconds, state=RunState.SUCCEEDED, minute=5, **stamps):
    """A run of a past slot that started so many seconds late."""
    with db.transaction() as session:
        now = db.now(session)
        slot = now.replace(second=0, microsecond=0) - timedelta(minutes=minute)
        while session.query(Run).filter_by(task_id=UUID(task["id"]), scheduled_for=slot).count():
            slot += timedelta(seconds=1)
        row = queries.task(session, UUID(task["id"]))
        new = runs.NewRun(id=runs.identify(row.id, slot), task=row, slot=slot, trigger=Trigger.SCHEDULE)
        runs.record(session, now, [new])
        times = {"fired_at": 0, "published_at": 0} | stamps | {"started_at": seconds}
        values = {name: slot + timedelta(seconds=offset) for name, offset in times.items()}
        session.query(Run).filter_by(id=new.id).update(values | {"state": state, "finished_at": now})
        return slot


def test_statistics_say_how_it_went_and_which_stage_made_runs_late(client, register):
    task, other = register(name="one"), register(name="two")
    for seconds in (0.01, 0.02, 0.03):
        record(task, seconds)
    record(task, 40, fired_at=30, published_at=31)
    record(task, 50, fired_at=1, published_at=2)
    record(other, 12, RunState.FAILED, fired_at=1, published_at=11)
    summarise()
    whole, one = (client.get("/api/v1/stats", query_string=wanted).json for wanted in ({}, {"task_id": task["id"]}))
    assert whole["runs"] == {"succeeded": 5, "failed": 1, "cancelled": 0, "skipped": 0, "waiting": 0}
    assert one["runs"]["succeeded"] == 5
    assert one["runs"]["failed"] == 0
    assert (whole["in_time"], one["in_time"]) == (0.5, 0.6)
    assert whole["lateness"]["max_ms"] == one["lateness"]["max_ms"] == 50_000
    assert one["lateness"]["p50_ms"] == 30
    assert (whole["late"]["runs"], one["late"]["runs"]) == (3, 2)
    assert {name: stage["runs"] for name, stage in whole["late"]["stages"].items()} == {
        "fired": 1,
        "published": 1,
        "started": 1,
    }
    assert one["late"]["stages"]["started"]["max_ms"] == 48_000
    assert one["late"]["stages"]["published"]["runs"] == 0


def test_statistics_of_nothing_are_empty_and_of_a_longer_time_too(client, task):
    assert client.get("/api/v1/stats?since=2020-01-01T00:00:00Z").json["errors"]["since"]
    for days in (0, 1, 89):
        since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        found = client.get("/api/v1/stats", query_string={"since": since}).json
        assert set(found["runs"].values()) == {0}
        assert found["in_time"] is None
        assert found["lateness"] == {"p50_ms": None, "p99_ms": None, "max_ms": None}
        assert found["late"]["stages"]["fired"] == {"runs": 0, "p50_ms": None, "max_ms": None}
    assert client.get("/api/v1/stats?task_id=nonsense").status_code == 422
    assert client.get(f"/api/v1/stats?task_id={UUID(int=0)}").status_code == 404


def test_statistics_read_no_run_where_none_was_late(client, task, statements):
    record(task, 0.01)
    summarise()
    with statements() as seen:
        assert client.get("/api/v1/stats").json["late"]["runs"] == 0
    assert not [statement for statement in seen if "FROM runs" in statement]


def test_tasks_that_have_no_slot_left_are_no_hindrance_to_an_import(client, register):
    register(name="going")
    register(name="over", schedule={"type": "once", "at": "2026-01-01T00:00:00Z"})
    with db.transaction() as session:
        session.query(Task).filter_by(name="over").update({"state": "completed", "next_run_at": None})
    assert [line["name"] for line in exported(client)] == ["going"]
    whole = exported(client) + exported(client, state="completed")
    assert [line["name"] for line in whole] == ["going", "over"]
    assert bring(client, whole).json == {"added": [], "changed": [], "left": ["going", "over"]}


def test_a_resume_that_has_much_to_pass_over_does_what_there_is_time_for(client, four, monkeypatch):
    many(client, "pause", target="debug.echo")
    monkeypatch.setattr(bulk, "STEP", 1)
    monkeypatch.setattr(bulk, "WORK", 0.0)
    assert many(client, "resume", target="debug.echo") == {"tasks": 0, "more": True}
    monkeypatch.setattr(bulk, "WORK", 60.0)
    assert many(client, "resume", target="debug.echo") == {"tasks": 4, "more": False}


def test_a_change_from_one_to_true_is_seen_by_an_import(client):
    bring(client, [BODY | {"name": "x", "kwargs": {"n": 1}}])
    assert bring(client, [BODY | {"name": "x", "kwargs": {"n": True}}]).json["changed"]
    assert exported(client)[0]["kwargs"]["n"] is True
