"""Bad input to every route gets the right 4xx with the field named, a store that is away 503; nothing gets a 500."""

import base64
import io
import json
import uuid
from uuid import uuid4

import pytest

BASE = "/api/v1"
HOURLY = {"type": "interval", "every": 3600}
GOOD = {"target": "debug.echo", "schedule": HOURLY}
EARLY = base64.urlsafe_b64encode(json.dumps(["0001-01-01T00:00:00+14:00", str(uuid.UUID(int=0))]).encode()).decode()
"""A cursor whose time lies before the first year in UTC."""

NOBODY = str(uuid4())

CALLS = [
    ("GET", "/tasks"),
    ("POST", "/tasks"),
    ("POST", "/tasks/bulk"),
    ("POST", "/tasks/bulk/pause"),
    ("POST", "/tasks/bulk/resume"),
    ("POST", "/tasks/bulk/delete"),
    ("POST", "/tasks/import"),
    ("GET", "/tasks/export"),
    ("GET", f"/tasks/{NOBODY}"),
    ("PATCH", f"/tasks/{NOBODY}"),
    ("DELETE", f"/tasks/{NOBODY}"),
    ("POST", f"/tasks/{NOBODY}/pause"),
    ("POST", f"/tasks/{NOBODY}/resume"),
    ("POST", f"/tasks/{NOBODY}/run"),
    ("POST", f"/tasks/{NOBODY}/backfill"),
    ("GET", f"/tasks/{NOBODY}/upcoming"),
    ("GET", f"/tasks/{NOBODY}/runs"),
    ("GET", "/forecast"),
    ("GET", "/incidents"),
    ("GET", "/runs"),
    ("GET", f"/runs/{NOBODY}"),
    ("POST", f"/runs/{NOBODY}/cancel"),
    ("POST", f"/runs/{NOBODY}/retry"),
    ("POST", "/schedules/preview"),
    ("GET", "/targets"),
    ("GET", "/cluster"),
    ("GET", "/stats"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("DELETE", "/keys/nobody"),
    ("GET", "/audit"),
]
"""Every call below the base. A test holds this list against the app's own routes."""

BODIES = {
    ("POST", "/tasks"): GOOD,
    ("POST", "/tasks/bulk"): {"items": [GOOD]},
    ("POST", "/tasks/bulk/pause"): {"q": "x"},
    ("POST", "/tasks/bulk/resume"): {"label": "k:v"},
    ("POST", "/tasks/bulk/delete"): {"target": "debug.echo"},
    ("POST", "/tasks/import"): {"items": [GOOD | {"name": "x"}]},
    ("POST", "/keys"): {"name": "x", "role": "viewer"},
    ("PATCH", f"/tasks/{NOBODY}"): {"priority": 1},
    ("POST", f"/tasks/{NOBODY}/backfill"): {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"},
    ("POST", "/schedules/preview"): {"schedule": HOURLY},
}

TAKE_JSON = [
    *BODIES,
    *(("POST", f"/tasks/{NOBODY}/{action}") for action in ("pause", "resume", "run")),
]

READ_A_STORE = [call for call in CALLS if call != ("POST", "/schedules/preview")]


def is_an_error(answer, status, code):
    """Every error has one form, and says with its status what it says in its body."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert [*answer.json] == ["code", "status", "message", "errors"]
    assert (answer.json["code"], answer.json["status"]) == (code, status)
    assert answer.json["message"]
    return answer.json["errors"]


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


def names(errors):
    """The path to the one wrong field."""
    path = []
    while isinstance(errors, dict):
        [(name, errors)] = errors.items()
        path.append(name)
    assert all(isinstance(sentence, str) and sentence.endswith(".") for sentence in errors), errors
    return ".".join(path)


BAD_FIELDS = [
    ("target", {"target": "no.such"}),
    ("target", {"target": None}),
    ("target", {"target": ""}),
    ("target", {"target": 5}),
    ("target", {"target": "a\x00b"}),
    ("target", {"target": "\ud800"}),
    ("name", {"name": ""}),
    ("name", {"name": " \n "}),
    ("name", {"name": "x" * 201}),
    ("name", {"name": ["x"]}),
    ("name", {"name": "a\x00"}),
    ("description", {"description": "x" * 2001}),
    ("description", {"description": None}),
    ("labels", {"labels": []}),
    ("labels", {"labels": {str(number): "" for number in range(33)}}),
    ("labels.k.value", {"labels": {"k": 1}}),
    ("labels.k.value", {"labels": {"k": "x" * 256}}),
    ("labels.k.value", {"labels": {"k": "\x00"}}),
    ("labels.a:b.key", {"labels": {"a:b": ""}}),
    ("labels..key", {"labels": {"": ""}}),
    ("args", {"args": {}}),
    ("args", {"args": "abc"}),
    ("args", {"args": None}),
    ("args", {"args": ["a\x00b"]}),
    ("args", {"args": [{"deep": ["\udfff"]}]}),
    ("args", {"args": [10**400]}),
    ("args", {"args": deep(60)}),
    ("args", {"args": ["x" * 33_000]}),
    ("kwargs", {"kwargs": []}),
    ("kwargs", {"kwargs": {"\x00": 1}}),
    ("kwargs", {"args": ["x" * 17_000], "kwargs": {"a": "x" * 17_000}}),
    ("queue", {"queue": ""}),
    ("queue", {"queue": "a b"}),
    ("queue", {"queue": "default\n"}),
    ("queue", {"queue": "x" * 65}),
    ("queue", {"queue": "amq.direct"}),
    ("queue", {"queue": "punctual.dead"}),
    ("queue", {"queue": "unacked"}),
    ("kwargs", {"kwargs": {"x": {"__type__": "uuid", "__value__": "1"}}}),
    ("args", {"args": [[{"__value__": 1, "__type__": "any"}]]}),
    ("priority", {"priority": -1}),
    ("priority", {"priority": 10}),
    ("priority", {"priority": "5"}),
    ("priority", {"priority": True}),
    ("priority", {"priority": 5.5}),
    ("priority", {"priority": None}),
    ("schedule", {"schedule": "0 9 * * *"}),
    ("schedule", {"schedule": None}),
    ("schedule.type", {"schedule": {}}),
    ("schedule.type", {"schedule": {"type": "never"}}),
    ("schedule.type", {"schedule": {"type": []}}),
    ("schedule.at", {"schedule": {"type": "once"}}),
    ("schedule.at", {"schedule": {"type": "once", "at": "2026-12-24T18:00:00"}}),
    ("schedule.at", {"schedule": {"type": "once", "at": "2026-02-30T18:00:00Z"}}),
    ("schedule.at", {"schedule": {"type": "once", "at": 1_800_000_000}}),
    ("schedule", {"schedule": {"type": "once", "at": "\x00"}}),
    ("schedule.expression", {"schedule": {"type": "cron", "expression": "61 * * * *"}}),
    ("schedule.expression", {"schedule": {"type": "cron", "expression": "soon"}}),
    ("schedule.expression", {"schedule": {"type": "cron", "expression": 5}}),
    ("schedule.timezone", {"schedule": {"type": "cron", "expression": "0 9 * * *", "timezone": "Mars/Base"}}),
    ("schedule.timezone", {"schedule": {"type": "cron", "expression": "0 9 * * *", "timezone": "../../etc/passwd"}}),
    ("schedule.every", {"schedule": {"type": "interval", "every": 0}}),
    ("schedule.every", {"schedule": {"type": "interval", "every": "60"}}),
    ("schedule.every", {"schedule": {"type": "interval", "every": True}}),
    ("schedule.every", {"schedule": {"type": "interval", "every": 1e300}}),
    ("schedule.anchor", {"schedule": {"type": "interval", "every": 5, "anchor": "2026-12-24"}}),
    ("schedule.rule", {"schedule": {"type": "rrule", "rule": "FREQ=SOMETIMES", "starts": "2026-01-01T00:00:00Z"}}),
    ("schedule.cron", {"schedule": HOURLY | {"cron": "* * * * *"}}),
    ("starts_at", {"starts_at": "2026-12-24T18:00:00"}),
    ("starts_at", {"starts_at": "2026-12-24"}),
    ("starts_at", {"starts_at": 1}),
    ("starts_at", {"starts_at": "9999-12-31T23:59:59-23:59"}),
    ("starts_at", {"starts_at": "0001-01-01T00:00:00+23:59"}),
    ("ends_at", {"ends_at": "tomorrow"}),
    ("ends_at", {"ends_at": "2090-13-01T00:00:00Z"}),
    ("ends_at", {"starts_at": "2090-01-02T00:00:00Z", "ends_at": "2090-01-01T00:00:00Z"}),
    ("max_runs", {"max_runs": 0}),
    ("max_runs", {"max_runs": 2**31}),
    ("max_runs", {"max_runs": 10**30}),
    ("max_runs", {"max_runs": "3"}),
    ("jitter", {"jitter": -1}),
    ("jitter", {"jitter": 3601}),
    ("jitter", {"jitter": "5"}),
    ("jitter", {"jitter": True}),
    ("overlap", {"overlap": "maybe"}),
    ("overlap", {"overlap": 1}),
    ("catchup", {"catchup": "latest"}),
    ("catchup.policy", {"catchup": {"policy": "some"}}),
    ("catchup.window", {"catchup": {"window": -1}}),
    ("catchup.window", {"catchup": {"window": 1e300}}),
    ("catchup.more", {"catchup": {"more": 1}}),
    ("retry", {"retry": None}),
    ("retry.max_attempts", {"retry": {"max_attempts": 0}}),
    ("retry.max_attempts", {"retry": {"max_attempts": 101}}),
    ("retry.backoff", {"retry": {"backoff": "1s"}}),
    ("retry.backoff_max", {"retry": {"backoff_max": -1}}),
    ("retry.jitter", {"retry": {"jitter": 1}}),
    ("retry.jitter", {"retry": {"jitter": "true"}}),
    ("timeout", {"timeout": 0}),
    ("timeout", {"timeout": 86_401}),
    ("timeout", {"timeout": None}),
    ("colour", {"colour": "red"}),
    ("id", {"id": NOBODY}),
    ("state", {"state": "paused"}),
    ("next_run_at", {"next_run_at": None}),
    ("version", {"version": 1}),
]


@pytest.mark.parametrize(("field", "body"), BAD_FIELDS, ids=[f"{field}-{n}" for n, (field, _) in enumerate(BAD_FIELDS)])
def test_a_bad_field_of_a_task_is_named_wherever_it_is_sent(client, register, field, body):
    task = register()
    assert names(is_an_error(client.post(f"{BASE}/tasks", json=GOOD | body), 422, "invalid")) == field
    bulk = client.post(f"{BASE}/tasks/bulk", json={"items": [GOOD, GOOD | body]})
    assert names(is_an_error(bulk, 422, "invalid")) == f"items.1.{field}"
    assert names(is_an_error(client.patch(f"{BASE}/tasks/{task['id']}", json=body), 422, "invalid")) == field
    assert client.get(f"{BASE}/tasks/{task['id']}").json == task | {"target_available": True}
    assert len(client.get(f"{BASE}/tasks").json["items"]) == 1


NEVER = [
    {"schedule": {"type": "cron", "expression": "0 0 30 2 *"}},
    {"schedule": HOURLY, "ends_at": "2000-01-01T00:00:00Z"},
    {"schedule": {"type": "rrule", "rule": "FREQ=DAILY;COUNT=2", "starts": "2000-01-01T00:00:00Z"}},
]


@pytest.mark.parametrize("body", NEVER)
def test_a_schedule_that_never_fires_is_refused(client, task, body):
    for answer in (
        client.post(f"{BASE}/tasks", json=GOOD | body),
        client.patch(f"{BASE}/tasks/{task['id']}", json=body),
    ):
        assert names(is_an_error(answer, 422, "invalid")).startswith("schedule")
    if "ends_at" not in body:
        answer = client.post(f"{BASE}/schedules/preview", json=body)
        assert names(is_an_error(answer, 422, "invalid")).startswith("schedule")


def test_a_task_without_target_and_schedule_names_both(client):
    assert is_an_error(client.post(f"{BASE}/tasks", json={}), 422, "invalid").keys() == {"target", "schedule"}


def test_no_name_of_a_field_breaks_the_form_of_the_errors(client):
    for name in ("_schema", "", "\x00", "\ud800", "a.b", "errors", "0"):
        errors = is_an_error(client.post(f"{BASE}/tasks", json=GOOD | {name: 1}), 422, "invalid")
        assert errors == {name: ["Unknown field."]}


def test_a_patch_may_not_take_the_name_away(client, task):
    assert names(is_an_error(client.patch(f"{BASE}/tasks/{task['id']}", json={"name": None}), 422, "invalid")) == "name"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tasks/bulk", {}, "items"),
        ("/tasks/bulk", {"items": []}, "items"),
        ("/tasks/bulk", {"items": {}}, "items"),
        ("/tasks/bulk", {"items": [[]]}, "items.0"),
        ("/tasks/bulk", {"items": [{}] * 1001}, "items"),
        ("/tasks/bulk", {"items": [GOOD], "more": 1}, "more"),
        ("/tasks/ID/pause", {"note": 5}, "note"),
        ("/tasks/ID/pause", {"note": "\x00"}, "note"),
        ("/tasks/ID/pause", {"note": "x" * 1001}, "note"),
        ("/tasks/ID/pause", {"reason": "x"}, "reason"),
        ("/tasks/ID/resume", {"from": "then"}, "from"),
        ("/tasks/ID/resume", {"from": None}, "from"),
        ("/tasks/ID/resume", {"since": "now"}, "since"),
        ("/tasks/ID/run", {"args": {}}, "args"),
        ("/tasks/ID/run", {"kwargs": {"a": "\x00"}}, "kwargs"),
        ("/tasks/ID/run", {"kwargs": {"a": "x" * 33_000}}, "kwargs"),
        ("/tasks/ID/run", {"target": "debug.echo"}, "target"),
        ("/schedules/preview", {}, "schedule"),
        ("/schedules/preview", {"schedule": HOURLY, "count": 0}, "count"),
        ("/schedules/preview", {"schedule": HOURLY, "count": 101}, "count"),
        ("/schedules/preview", {"schedule": HOURLY, "count": "5"}, "count"),
        ("/schedules/preview", {"schedule": HOURLY, "zone": "UTC"}, "zone"),
        ("/schedules/preview", {"schedule": {"type": "cron", "expression": "x"}}, "schedule.expression"),
    ],
)
def test_a_bad_field_of_any_other_body_is_named(client, task, path, body, field):
    answer = client.post(BASE + path.replace("ID", task["id"]), json=body)
    assert names(is_an_error(answer, 422, "invalid")) == field


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/tasks?limit=0", "limit"),
        ("/tasks?limit=201", "limit"),
        ("/tasks?limit=1.5", "limit"),
        ("/tasks?limit=1_0", "limit"),
        (f"/tasks?limit={'9' * 5000}", "limit"),
        ("/tasks?after=nonsense", "after"),
        ("/tasks?after=%FF%00", "after"),
        ("/tasks?after=W10", "after"),
        (f"/tasks?after={EARLY}", "after"),
        ("/tasks?after=WyJ4IiwieCJd", "after"),
        (f"/tasks?after={'Wyd' * 900}", "after"),
        ("/tasks?state=lost", "state"),
        ("/tasks?q=a%00b", "q"),
        ("/tasks?target=%00", "target"),
        ("/tasks?label=team", "label"),
        ("/tasks?label=:x", "label"),
        ("/tasks?label=a%00:b", "label"),
        ("/tasks?colour=red", "colour"),
        ("/runs?state=active", "state"),
        ("/runs?task_id=five", "task_id"),
        ("/runs?since=2026-01-01T00:00:00", "since"),
        ("/runs?until=yesterday", "until"),
        ("/runs?limit=x", "limit"),
        ("/runs?after=x", "after"),
        ("/tasks/ID/runs?after=x", "after"),
        ("/tasks/ID/runs?state=x", "state"),
        ("/tasks/ID/upcoming?count=0", "count"),
        ("/tasks/ID/upcoming?count=101", "count"),
        ("/tasks/ID/upcoming?limit=1", "limit"),
    ],
)
def test_a_bad_query_is_named(client, task, path, field):
    assert names(is_an_error(client.get(BASE + path.replace("ID", task["id"])), 422, "invalid")) == field


BROKEN_JSON = [
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"",
    b'{"target": NaN}',
    b'{"target": -Infinity}',
    b'{"priority": 1e400}',
    b'{"priority": ' + b"9" * 5000 + b"}",
    b'{"note": "a", "note": "b"}',
    b'{"args": {"a": 1, "a": 2}}',
    b'{"note": "\xff"}',
    b"\xef\xbb\xbf{}",
    b"[" * 30_000,
    b'{"a":' * 10_000,
]


@pytest.mark.parametrize("call", TAKE_JSON, ids=" ".join)
def test_a_body_that_is_no_json_object_is_malformed(client, call):
    method, path = call
    for body in BROKEN_JSON:
        if body or call in BODIES:
            answer = client.open(BASE + path, method=method, data=body, content_type="application/json")
            assert is_an_error(answer, 400, "malformed") == {}


@pytest.mark.parametrize("call", TAKE_JSON, ids=" ".join)
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_a_body_that_does_not_say_that_it_is_json_is_malformed(client, call, content_type):
    method, path = call
    answer = client.open(BASE + path, method=method, data=b"{}", content_type=content_type)
    assert "application/json" in answer.json["message"]
    is_an_error(answer, 400, "malformed")


@pytest.mark.parametrize("call", TAKE_JSON, ids=" ".join)
def test_a_body_that_is_too_large_is_refused(client, call):
    method, path = call
    size = 8 * 1024 * 1024 if path in {"/tasks/bulk", "/tasks/import"} else 64 * 1024
    answer = client.open(BASE + path, method=method, data=b" " * (size + 1), content_type="application/json")
    is_an_error(answer, 413, "too_large")


@pytest.mark.parametrize("call", TAKE_JSON, ids=" ".join)
def test_a_body_that_is_too_large_is_refused_where_its_length_was_not_announced(client, call):
    method, path = call
    size = 8 * 1024 * 1024 if path in {"/tasks/bulk", "/tasks/import"} else 64 * 1024
    chunked = {"input_stream": io.BytesIO(b"{}" + b" " * size), "environ_overrides": {"wsgi.input_terminated": True}}
    answer = client.open(BASE + path, method=method, content_type="application/json", **chunked)
    is_an_error(answer, 413, "too_large")


def test_bulk_takes_more_than_a_single_task_may(client):
    items = [GOOD | {"description": "x" * 2000}] * 40
    assert client.post(f"{BASE}/tasks/bulk", json={"items": items}).status_code == 201


@pytest.mark.parametrize("call", [call for call in CALLS if NOBODY in call[1]], ids=" ".join)
def test_what_is_not_there_is_not_found_and_an_id_that_is_none_neither(client, call):
    method, path = call
    body = {"json": BODIES.get(call, {})} if method in {"POST", "PATCH"} else {}
    for name in (NOBODY, "5", "x%00y", f"{NOBODY}0", "%F0", "bulk%2F"):
        answer = client.open(BASE + path.replace(NOBODY, name), method=method, **body)
        assert is_an_error(answer, 404, "not_found") == {}


@pytest.mark.parametrize("path", ["/nothing", "/api/v1", "/api/v1/", "/api/v1/tasks/", "//api/v1/tasks", "/%00"])
def test_an_unknown_address_is_not_found(client, path):
    is_an_error(client.get(path), 404, "not_found")


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_method_that_an_address_does_not_take_is_refused_with_those_that_it_takes(client, call):
    _, path = call
    answer = client.open(BASE + path, method="TRACE")
    is_an_error(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) >= {"OPTIONS"}
    assert client.options(BASE + path).status_code == 200


def test_head_answers_as_get_without_a_body(client, task):
    answer = client.head(f"{BASE}/tasks/{task['id']}")
    assert (answer.status_code, answer.data, answer.headers["ETag"]) == (200, b"", '"1"')


@pytest.mark.parametrize("call", [*CALLS, ("GET", "/nothing"), ("DELETE", "/tasks")], ids=" ".join)
def test_nothing_below_the_base_answers_without_the_key(stranger, call):
    method, path = call
    headers = [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic cHVuY3R1YWwtdGVzdC1rZXk=",
        "punctual-test-key",
        "Bearer é",
    ]
    for header in headers:
        answer = stranger.open(BASE + path, method=method, headers={"Authorization": header} if header else None)
        is_an_error(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_scheme_of_the_key_is_read_in_any_case(stranger):
    assert stranger.get(f"{BASE}/tasks", headers={"Authorization": "bearer  punctual-test-key"}).status_code == 200


@pytest.mark.parametrize("call", READ_A_STORE, ids=" ".join)
def test_without_the_database_every_call_is_unavailable_and_says_when_to_try_again(client, no_database, call):
    method, path = call
    body = {"json": BODIES.get(call, {})} if method in {"POST", "PATCH"} else {}
    answer = client.open(BASE + path, method=method, **body)
    is_an_error(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_without_redis_changes_are_taken_all_the_same(client, no_redis):
    answer = client.post(f"{BASE}/tasks", json=GOOD)
    assert answer.status_code == 201
    assert client.post(f"{BASE}/tasks/{answer.json['id']}/run").status_code == 202


def test_a_process_is_healthy_and_ready_without_a_key(stranger):
    assert stranger.get("/healthz").json == {"status": "ok"}
    ready = stranger.get("/readyz")
    assert ready.json == {"status": "ready", "stores": {"database": "ready", "redis": "ready", "broker": "ready"}}


@pytest.mark.parametrize("store", ["database", "redis", "broker"])
def test_a_process_is_not_ready_where_a_store_is_away_and_names_it(stranger, request, store):
    request.getfixturevalue(f"no_{store}")
    answer = stranger.get("/readyz")
    assert [*is_an_error(answer, 503, "unavailable")] == [store]
    assert int(answer.headers["Retry-After"]) > 0
    assert store in answer.json["message"]
    assert stranger.get("/healthz").status_code == 200


def test_a_fault_of_ours_is_a_plain_500_and_is_logged(app, client, caplog):
    def fail():
        raise ZeroDivisionError("a secret")

    endpoint = "targets.index"
    view, app.view_functions[endpoint] = app.view_functions[endpoint], fail
    try:
        answer = client.get(f"{BASE}/targets")
    finally:
        app.view_functions[endpoint] = view
    is_an_error(answer, 500, "internal")
    assert "secret" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_every_route_stands_in_the_tables_above(app):
    rules = {
        (
            method,
            rule.rule.replace("<uuid:task_id>", NOBODY)
            .replace("<uuid:run_id>", NOBODY)
            .replace("<string:key_id>", "nobody")
            .removeprefix(BASE),
        )
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(BASE) and not rule.rule.endswith("openapi.json")
    }
    assert rules == set(CALLS)
