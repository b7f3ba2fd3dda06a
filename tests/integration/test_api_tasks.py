"""Tasks over REST: what a client registers is what it reads, changes and deletes."""

import itertools
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app import clock, fields, tasks

URL = "/api/v1/tasks"
HOURLY = {"type": "interval", "every": 3600}
KINDS = [
    {"type": "now"},
    {"type": "once", "at": "2090-12-24T18:00:00+01:00"},
    {"type": "cron", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Paris"},
    {"type": "interval", "every": 90},
    {
        "type": "rrule",
        "rule": "FREQ=MONTHLY;BYDAY=-1FR",
        "starts": "2026-01-01T09:00:00+01:00",
        "timezone": "Europe/Paris",
    },
]
FULL = {
    "name": "nightly-report",
    "description": "Sends the report.",
    "labels": {"team": "billing"},
    "target": "http.request",
    "args": [1, None, "é"],
    "kwargs": {"method": "POST", "url": "https://example.com", "json": {"deep": [1.5, True]}},
    "queue": "reports",
    "priority": 9,
    "schedule": {"type": "cron", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Paris"},
    "starts_at": "2190-01-01T00:00:00+01:00",
    "ends_at": "2198-01-01T00:00:00Z",
    "max_runs": 5,
    "jitter": 2.5,
    "overlap": "allow",
    "catchup": {"policy": "all", "window": 86400},
    "retry": {"max_attempts": 3, "backoff": 0.5, "backoff_max": 60, "jitter": False},
    "timeout": 30,
}
GIVEN_TIMES = {"starts_at": "2189-12-31T23:00:00.000Z", "ends_at": "2198-01-01T00:00:00.000Z"}


def url(task, *more):
    return "/".join([URL, task["id"], *more])


def test_a_task_is_answered_as_it_was_registered_with_times_in_utc(client):
    answer = client.post(URL, json=FULL)
    assert answer.status_code == 201
    assert {name: answer.json[name] for name in FULL} == FULL | GIVEN_TIMES
    assert answer.headers["Location"] == f"{URL}/{answer.json['id']}"
    assert answer.headers["ETag"] == '"1"'
    assert client.get(answer.headers["Location"]).json == answer.json | {"target_available": True}


def test_arguments_come_back_as_they_were_sent_and_can_be_sent_again(client, register):
    args = [0, -1, 2**80, 1.5, 1e-300, 1e20, True, None, "", "\U0001f600", {"": [{}]}, [[[]]]]
    task = register(args=args)
    assert task["args"] == args
    read = client.get(url(task)).json["args"]
    assert read == args
    assert client.patch(url(task), json={"args": read}).json["args"] == args


def test_a_large_float_comes_back_as_an_integer_that_can_be_sent_again(client, register):
    task = register(args=[1.7e308])
    [read] = client.get(url(task)).json["args"]
    assert float(read) == 1.7e308
    assert client.patch(url(task), json={"args": [read]}).status_code == 200


def test_only_target_and_schedule_are_required_and_the_rest_has_the_contracts_defaults(register):
    task = register()
    assert task["name"].startswith("debug.echo-")
    expected = {
        "description": "", "labels": {}, "args": [], "kwargs": {}, "queue": "default", "priority": 5,
        "starts_at": None, "ends_at": None, "max_runs": None, "jitter": 0, "overlap": "skip", "timeout": 300,
        "retry": {"max_attempts": 1, "backoff": 5, "backoff_max": 600, "jitter": True},
        "state": "active", "note": None, "last_run_at": None, "version": 1,
    }  # fmt: skip
    assert {name: task[name] for name in expected} == expected
    assert task["catchup"]["policy"] == "latest"
    next_run_at = datetime.fromisoformat(task["next_run_at"])
    assert timedelta(minutes=59) < next_run_at - clock.now() <= timedelta(hours=1)


@pytest.mark.parametrize("schedule", KINDS, ids=lambda schedule: schedule["type"])
def test_every_kind_of_schedule_can_be_registered_and_sent_back_as_it_was_read(client, register, schedule):
    task = register(schedule=schedule)
    assert task["next_run_at"].endswith("Z")
    again = client.patch(url(task), json={"schedule": task["schedule"]})
    assert (again.status_code, again.json["schedule"]) == (200, task["schedule"])


def test_a_patch_changes_what_it_names_and_nothing_else(client, register):
    task = register(retry={"max_attempts": 3, "backoff": 1})
    answer = client.patch(url(task), json={"priority": 0, "retry": {"backoff": 2}})
    assert answer.status_code == 200
    assert answer.headers["ETag"] == '"2"'
    changed = {"priority": 0, "retry": task["retry"] | {"backoff": 2}, "version": 2}
    assert answer.json == task | changed | {"updated_at": answer.json["updated_at"]}


def test_bounds_can_be_taken_away_again(client, register):
    task = register(max_runs=5, ends_at="2198-01-01T00:00:00Z")
    answer = client.patch(url(task), json={"max_runs": None, "ends_at": None})
    assert (answer.json["max_runs"], answer.json["ends_at"]) == (None, None)


def test_a_change_for_an_older_version_is_refused_and_changes_nothing(client, task):
    assert client.patch(url(task), json={"priority": 1}, headers={"If-Match": '"1"'}).status_code == 200
    stale = client.patch(url(task), json={"priority": 2}, headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json["code"]) == (412, "stale")
    assert client.delete(url(task), headers={"If-Match": '"1"'}).status_code == 412
    assert client.get(url(task)).json["priority"] == 1


@pytest.mark.parametrize(
    ("header", "status"),
    [('"1"', 200), ("*", 200), (' "1" ', 200), ('"2"', 412), ('W/"1"', 412), ('"other"', 412), ('"0"', 412),
     ("1", 400), ('"1", "2"', 400), ('"1', 400), ("", 400), ('"' + "9" * 5000 + '"', 412)],
)  # fmt: skip
def test_if_match_is_one_etag_and_compared_strongly(client, task, header, status):
    assert client.patch(url(task), json={}, headers={"If-Match": header}).status_code == status


def test_a_deleted_task_is_gone_but_its_runs_are_kept(client, task, run):
    answer = client.delete(url(task), headers={"If-Match": f'"{task["version"]}"'})
    assert (answer.status_code, answer.data) == (204, b"")
    for call in (client.get, client.delete):
        assert call(url(task)).status_code == 404
    kept = client.get(url(task, "runs")).json["items"]
    assert [(one["id"], one["state"], one["reason"]) for one in kept] == [(run["id"], "cancelled", "task_deleted")]
    assert task["id"] not in [one["id"] for one in client.get(URL).json["items"]]


def test_tasks_without_a_name_get_one_each_though_their_ids_begin_alike(register, monkeypatch):
    ids = [UUID("0123abcd-0000-4000-8000-000000000000"), UUID("0123abcd-0001-4000-8000-000000000000")]
    monkeypatch.setattr(tasks, "uuid4", iter(ids).__next__)
    assert len({register()["name"] for _ in ids}) == len(ids)


def test_a_name_is_free_again_once_its_task_is_deleted(client, register):
    first = register(name="one")
    taken = client.post(URL, json={"name": "one", "target": "debug.echo", "schedule": HOURLY})
    assert (taken.status_code, taken.json["code"], [*taken.json["errors"]]) == (409, "conflict", ["name"])
    other = register()
    assert client.patch(url(other), json={"name": "one"}).status_code == 409
    client.delete(url(first))
    assert register(name="one")["id"] != first["id"]


def test_bulk_registers_all_in_order(client):
    items = [{"name": f"task {index}", "target": "debug.echo", "schedule": HOURLY} for index in range(1000)]
    answer = client.post(f"{URL}/bulk", json={"items": items})
    assert answer.status_code == 201
    assert [task["name"] for task in answer.json["items"]] == [item["name"] for item in items]


@pytest.mark.parametrize(
    ("broken", "status", "field"),
    [
        ({"priority": 10}, 422, "priority"),
        ({"target": "no.such"}, 422, "target"),
        ({"schedule": {"type": "cron", "expression": "x"}}, 422, "schedule"),
        ({"name": "task 1"}, 409, "name"),
    ],
)
def test_bulk_registers_nothing_where_one_is_wrong_and_names_its_index(client, broken, status, field):
    items = [{"name": f"task {index}", "target": "debug.echo", "schedule": HOURLY} for index in range(5)]
    items[3] |= broken
    answer = client.post(f"{URL}/bulk", json={"items": items})
    assert answer.status_code == status
    assert [*answer.json["errors"]["items"]] == ["3"]
    assert [*answer.json["errors"]["items"]["3"]] == [field]
    assert client.get(URL).json["items"] == []


def test_a_list_is_walked_by_its_cursor_and_new_tasks_shift_nothing(client, register):
    ids = [register()["id"] for _ in range(5)]
    first = client.get(f"{URL}?limit=2").json
    register()
    second = client.get(f"{URL}?limit=2&after={first['next']}").json
    third = client.get(f"{URL}?limit=2&after={second['next']}").json
    walked = [task["id"] for page in (first, second, third) for task in page["items"]]
    assert (walked, third["next"]) == (ids[::-1], None)


def test_a_list_is_filtered_by_words_state_target_and_label(client, register):
    bill = register(name="Bill", labels={"team": "a:b"}, target="http.request")
    other = register(description="100% done")
    client.post(url(other, "pause"))
    queries = ["q=bill", "state=active", "target=http.request", "label=team:a:b", "q=&state=&target=&label=&after="]
    found = [[task["id"] for task in client.get(f"{URL}?{query}").json["items"]] for query in queries]
    assert found == [[bill["id"]]] * 4 + [[other["id"], bill["id"]]]
    assert [task["id"] for task in client.get(f"{URL}?q=0%25").json["items"]] == [other["id"]]
    assert client.get(f"{URL}?q=_&state=paused&label=team:x").json == {"items": [], "next": None}


def test_a_paused_task_says_why_until_it_is_resumed(client, task):
    paused = client.post(url(task, "pause"), json={"note": "maintenance"})
    assert (paused.status_code, paused.json["state"], paused.json["note"]) == (200, "paused", "maintenance")
    resumed = client.post(url(task, "resume"), json={"from": "last"})
    assert (resumed.status_code, resumed.json["state"], resumed.json["note"]) == (200, "active", None)
    assert resumed.headers["ETag"] == f'"{resumed.json["version"]}"'


@pytest.mark.parametrize("action", ["pause", "resume", "run"])
@pytest.mark.parametrize("body", [{}, {"json": {}}, {"data": b"", "content_type": "application/json"}])
def test_an_action_needs_no_body(client, task, action, body):
    assert client.post(url(task, action), **body).status_code in {200, 202}


def test_a_run_now_takes_the_tasks_arguments_or_its_own(client, task):
    answer = client.post(url(task, "run"), json={"args": [1], "kwargs": {"a": None}})
    assert answer.status_code == 202
    assert (answer.json["trigger"], answer.json["state"], answer.json["task_id"]) == ("manual", "pending", task["id"])
    assert answer.headers["Location"] == f"/api/v1/runs/{answer.json['id']}"


def test_upcoming_gives_the_next_slots(client, register):
    task = register(schedule={"type": "interval", "every": 60, "anchor": "2020-01-01T00:00:00Z"}, max_runs=3)
    slots = client.get(url(task, "upcoming?count=100")).json["slots"]
    assert len(slots) == 3
    assert slots[0] == task["next_run_at"]
    moments = [datetime.fromisoformat(slot) for slot in slots]
    assert {later - sooner for sooner, later in itertools.pairwise(moments)} == {timedelta(minutes=1)}


@pytest.mark.parametrize("schedule", KINDS, ids=lambda schedule: schedule["type"])
def test_a_preview_tells_what_a_schedule_means(client, schedule):
    answer = client.post("/api/v1/schedules/preview", json={"schedule": schedule, "count": 3})
    assert answer.status_code == 200
    assert answer.json["description"]
    assert answer.json["warnings"] == []
    assert len(answer.json["slots"]) == (1 if schedule["type"] in {"now", "once"} else 3)


def test_a_preview_of_a_time_that_has_passed_says_so(client):
    schedule = {"type": "once", "at": "2020-01-01T00:00:00Z"}
    answer = client.post("/api/v1/schedules/preview", json={"schedule": schedule})
    assert answer.json["slots"] == ["2020-01-01T00:00:00.000Z"]
    assert "passed" in answer.json["warnings"][0]


def test_targets_are_listed_by_name_with_what_is_known_of_them(client):
    answer = client.get("/api/v1/targets").json
    assert [target["name"] for target in answer["items"]] == ["debug.echo", "debug.fail", "debug.sleep", "http.request"]
    echo = answer["items"][0]
    assert echo["documentation"] == "Returns its arguments."
    assert datetime.fromisoformat(echo["last_seen_at"]).tzinfo == UTC


def test_a_backfill_makes_the_runs_that_past_slots_lack_and_only_those(client, register):
    since = clock.now() - timedelta(hours=5, minutes=1)
    task = register(schedule={"type": "interval", "every": 3600, "anchor": since.isoformat()})
    span = {"since": since.isoformat(), "until": clock.now().isoformat()}
    answer = client.post(url(task, "backfill"), json=span)
    assert (answer.status_code, answer.json) == (202, {"runs": 6})
    runs = client.get(url(task, "runs")).json["items"]
    assert {run["trigger"] for run in runs} == {"backfill"}
    assert [run["scheduled_for"] for run in runs][::-1] == [
        fields.instant(since + timedelta(hours=n)) for n in range(6)
    ]
    assert client.post(url(task, "backfill"), json=span).json == {"runs": 0}


def test_a_backfill_leaves_what_is_due_to_the_beats_and_refuses_too_much(client, register):
    task = register(schedule={"type": "interval", "every": 3600})
    now = clock.now()
    ahead = {"since": now.isoformat(), "until": (now + timedelta(days=1)).isoformat()}
    assert client.post(url(task, "backfill"), json=ahead).json == {"runs": 0}
    old = register(schedule={"type": "interval", "every": 3600, "anchor": "2020-01-01T00:00:00Z"})
    wide = client.post(url(old, "backfill"), json=ahead | {"since": "2020-01-01T00:00:00Z"})
    assert (wide.status_code, [*wide.json["errors"]]) == (422, ["until"])
    turned = client.post(url(task, "backfill"), json={"since": ahead["until"], "until": ahead["since"]})
    assert (turned.status_code, [*turned.json["errors"]]) == (422, ["until"])
