"""Who may call what: keys, roles, what a key is confined to. The table of calls is made from the app's own routes."""

import base64
import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from stores import ROOT

from app import api_keys, audit, bell, db, tasks
from app.models import ApiKey
from app.states import Role
from web import auth

KEYS = "/api/v1/keys"
TEAM = {"labels": {"team": "billing"}}
HOURLY = {"type": "interval", "every": 3600}
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
BODIES = {
    "tasks.create": {"target": "debug.echo", "schedule": HOURLY} | TEAM,
    "tasks.create_many": {"items": [{"target": "debug.echo", "schedule": HOURLY} | TEAM]},
    "tasks.import_many": {"items": [{"name": "brought", "target": "debug.echo", "schedule": HOURLY} | TEAM]},
    "tasks.pause_many": {"q": "zzz"},
    "tasks.resume_many": {"q": "zzz"},
    "tasks.delete_many": {"q": "zzz"},
    "tasks.change": {"priority": 7},
    "tasks.backfill": {"since": YESTERDAY.isoformat(), "until": (YESTERDAY + timedelta(seconds=1)).isoformat()},
    "schedules.preview": {"schedule": HOURLY},
    "keys.create": {"name": "another", "role": "viewer"},
}


def calls(app):
    """Every call of the API: endpoint, method, rule."""
    return sorted(
        (rule.endpoint, method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.endpoint.startswith("ui.") and auth.RULES.get(rule.endpoint) is not None
    )


class Caller:
    """A client with a key of its own."""

    def __init__(self, app, key):
        self.client = app.test_client()
        self.headers = {"Authorization": f"Bearer {key}"}

    def call(self, method, address, **more):
        headers = self.headers | more.pop("headers", {})
        return self.client.open(address, method=method, headers=headers, **more)

    def get(self, address, **more):
        return self.call("GET", f"/api/v1{address}", **more)

    def post(self, address, json=None, **more):
        return self.call("POST", f"/api/v1{address}", json=json, **more)


@pytest.fixture
def make_key(client):
    def make(role="viewer", **given):
        answer = client.post(KEYS, json={"name": f"a {role}", "role": role} | given)
        assert answer.status_code == 201, answer.json
        return answer.json

    return make


@pytest.fixture
def holder(app, make_key):
    """Makes a caller with a new key of a role."""
    return lambda role="viewer", **given: Caller(app, make_key(role, **given)["key"])


def test_every_route_has_a_rule_and_every_rule_a_route(app):
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}
    assert endpoints == auth.RULES.keys()


def test_a_route_without_a_rule_answers_nobody(app, client, monkeypatch):
    monkeypatch.setattr(auth, "RULES", {name: role for name, role in auth.RULES.items() if name != "targets.index"})
    answer = client.get("/api/v1/targets")
    assert answer.status_code == 403
    assert "nobody may" in answer.json["message"]


def address_of(rule, task, run, key):
    return (
        rule.replace("<uuid:task_id>", task["id"])
        .replace("<uuid:run_id>", run["id"])
        .replace("<string:key_id>", key["id"])
    )


@pytest.mark.parametrize("role", [None, *Role])
def test_each_call_answers_the_roles_that_its_rule_names_and_no_other(app, make_key, register, client, holder, role):
    """Own: a key that is confined to the task's label. Another's: one that is confined to another label."""
    bounds = {} if role == Role.ADMIN else TEAM  # who makes keys sees everything
    own = Caller(app, "") if role is None else holder(role, **bounds)
    others = None if role in {None, Role.ADMIN} else holder(role, labels={"team": "sales"})
    for endpoint, method, rule in calls(app):
        task = register(**TEAM)
        run = client.post(f"/api/v1/tasks/{task['id']}/run").json
        address = address_of(rule, task, run, make_key())
        body = BODIES.get(endpoint)
        answer = own.call(method, address, json=body)
        if role is None:
            assert answer.status_code == 401, address
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            continue
        allowed = role.includes(auth.RULES[endpoint])
        theirs = others.call(method, address, json=body) if others else None
        if not allowed:
            assert answer.status_code == theirs.status_code == 403, address
            assert f"takes the role {auth.RULES[endpoint]}" in answer.json["message"]
            continue
        assert answer.status_code < 300 or endpoint == "runs.retry", (address, answer.json)
        if others and ("task_id" in rule or "run_id" in rule):
            assert theirs.status_code == 404, (address, theirs.json)


def test_the_guide_has_the_table_of_the_roles(app):
    shown = re.findall(r"^\| `(\w+)` \| [a-z, ]+ \|$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert shown == [*Role]


def test_the_document_says_which_role_a_call_takes(app, stranger):
    paths = stranger.get("/api/v1/openapi.json").json["paths"]
    for endpoint, method, rule in calls(app):
        operation = paths[re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)][method.lower()]
        assert f"Takes the role `{auth.RULES[endpoint]}`." in operation["description"]


def test_a_key_has_its_form_and_is_shown_once(make_key, client):
    made = make_key("editor", queues=["default"], expires_at="2090-01-01T00:00:00Z", **TEAM)
    assert re.fullmatch(r"punc_[0-9A-Za-z]{50}", made["key"])
    assert made["key"].startswith(f"punc_{made['id']}")
    [listed, *_] = client.get(KEYS).json["items"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    with db.transaction() as session:
        row = session.get(ApiKey, made["id"])
        assert made["key"] not in str(vars(row))
        assert api_keys.split(made["key"])[1] not in str(vars(row))


def test_two_keys_are_never_alike_and_a_typo_is_no_key(make_key):
    one, other = make_key()["key"], make_key()["key"]
    assert one != other
    assert api_keys.split(one)
    for place in range(len(one)):
        typo = one[:place] + ("x" if one[place] != "x" else "y") + one[place + 1 :]
        assert api_keys.split(typo) is None


def test_a_key_with_its_checksum_right_and_its_secret_wrong_opens_nothing(app, make_key):
    made = make_key("admin")
    secret = "0" * api_keys.SECRET
    forged = f"punc_{made['id']}{secret}{api_keys._checksum(made['id'] + secret)}"
    assert api_keys.split(forged)
    assert Caller(app, forged).get("/tasks").status_code == 401


@pytest.mark.parametrize("other", ["", "punc_", "é" * 55, "punc_" + "!" * 50, "Bearer", "x" * 10_000])
def test_what_is_no_key_is_refused_without_a_look_into_the_database(app, no_database, other):
    assert app.test_client().get("/api/v1/tasks", headers={"Authorization": f"Bearer {other}"}).status_code == 401


def test_a_revoked_key_is_refused_at_once_here_and_within_seconds_elsewhere(app, holder, client, make_key, monkeypatch):
    made = make_key("admin")
    caller = Caller(app, made["key"])
    assert caller.get("/tasks").status_code == 200
    assert client.delete(f"{KEYS}/{made['id']}").status_code == 204
    assert caller.get("/tasks").status_code == 401
    assert client.delete(f"{KEYS}/{made['id']}").status_code == 204
    # another process has it in mind still
    made = make_key("admin")
    caller = Caller(app, made["key"])
    assert caller.get("/tasks").status_code == 200
    with db.transaction() as session:
        api_keys.revoke(session, db.now(session), made["id"])
    until, _ = auth._remembered.kept[made["id"]]
    assert caller.get("/tasks").status_code == 200
    monkeypatch.setattr(auth.time, "monotonic", lambda: until + 0.001)
    assert caller.get("/tasks").status_code == 401
    assert auth.REMEMBERED < 5


def test_a_key_ends_when_it_is_to(app, make_key, monkeypatch):
    made = make_key(expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    caller = Caller(app, made["key"])
    assert caller.get("/tasks").status_code == 200
    monkeypatch.setattr(auth.clock, "now", lambda: datetime.now(UTC) + timedelta(hours=2))
    assert caller.get("/tasks").status_code == 401


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("name", {"name": ""}),
        ("role", {"role": "king"}),
        ("role", {"role": None}),
        ("queues.0", {"queues": ["amq.x"]}),
        ("queues", {"queues": []}),
        ("labels.team.value", {"labels": {"team": 1}}),
        ("max_tasks", {"max_tasks": 0}),
        ("expires_at", {"expires_at": "2020-01-01T00:00:00Z"}),
        ("digest", {"digest": "x"}),
        ("role", {"role": "admin", "labels": {"team": "billing"}}),
        ("role", {"role": "admin", "queues": ["reports"]}),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_its_field(client, field, given):
    answer = client.post(KEYS, json={"name": "x", "role": "viewer"} | given)
    assert answer.status_code == 422
    found = answer.json["errors"]
    for part in field.split("."):
        found = found[part]
    assert found


def test_when_a_key_was_used_is_known_to_the_minute(make_key, app, client):
    made = make_key()
    assert made["last_used_at"] is None
    wrong = f"punc_{made['id']}{'0' * api_keys.SECRET}{api_keys._checksum(made['id'] + '0' * api_keys.SECRET)}"
    assert Caller(app, wrong).get("/tasks").status_code == 401
    assert client.get(KEYS).json["items"][0]["last_used_at"] is None
    Caller(app, made["key"]).get("/tasks")
    assert client.get(KEYS).json["items"][0]["last_used_at"] is not None


def test_a_confined_key_sees_its_own_alone_wherever_it_looks(holder, register, client):
    mine, other = register(name="mine", queue="reports", **TEAM), register(name="other", queue="reports")
    elsewhere = register(name="elsewhere", queue="default", **TEAM)
    own, theirs, third = (client.post(f"/api/v1/tasks/{task['id']}/run").json for task in (mine, other, elsewhere))
    caller = holder("editor", queues=["reports"], **TEAM)
    assert [task["name"] for task in caller.get("/tasks").json["items"]] == ["mine"]
    assert [run["id"] for run in caller.get("/runs").json["items"]] == [own["id"]]
    assert [run["id"] for run in caller.get("/runs", query_string={"task_id": other["id"]}).json["items"]] == []
    assert caller.get("/tasks/export").text.count("\n") == 1
    assert sum(caller.get("/stats").json["runs"].values()) == 1
    assert caller.post("/tasks/bulk/pause", {"q": "e"}).json == {"tasks": 1, "more": False}
    assert client.get(f"/api/v1/tasks/{other['id']}").json["state"] == "active"
    for hidden in (theirs, third):
        assert caller.get(f"/runs/{hidden['id']}").status_code == 404
        assert caller.post(f"/runs/{hidden['id']}/cancel").status_code == 404
    assert caller.get("/stats", query_string={"task_id": other["id"]}).status_code == 404
    assert client.get(f"/api/v1/runs/{theirs['id']}").json["state"] == "pending"


def test_a_confined_key_registers_and_moves_nothing_outside(holder, register):
    caller = holder("editor", queues=["reports"], **TEAM)
    body = {"target": "debug.echo", "schedule": HOURLY}
    for given in ({}, TEAM, {"queue": "reports"}, {"queue": "reports", "labels": {"team": "sales"}}):
        answer = caller.post("/tasks", body | given)
        assert answer.status_code == 403
        assert "team:billing" in answer.json["message"]
        assert "reports" in answer.json["message"]
    assert caller.post("/tasks/bulk", {"items": [body | TEAM]}).status_code == 403
    made = caller.post("/tasks", body | TEAM | {"queue": "reports"})
    assert made.status_code == 201
    address = f"/api/v1/tasks/{made.json['id']}"
    for change in ({"labels": {}}, {"queue": "default"}):
        assert caller.call("PATCH", address, json=change).status_code == 403
    assert caller.call("PATCH", address, json={"priority": 1}).status_code == 200


def test_a_key_has_no_more_tasks_than_it_may(holder, client):
    caller = holder("editor", max_tasks=3)
    body = {"target": "debug.echo", "schedule": HOURLY}
    made = [caller.post("/tasks", body).json for _ in range(2)]
    refused = caller.post("/tasks/bulk", {"items": [body, body]})
    assert refused.status_code == 403
    assert "3 tasks at most" in refused.json["message"]
    assert caller.post("/tasks", body).status_code == 201
    assert caller.post("/tasks", body).status_code == 403
    assert client.delete(f"/api/v1/tasks/{made[0]['id']}").status_code == 204
    assert caller.post("/tasks", body).status_code == 201
    assert client.get(KEYS).json["items"][0]["tasks"] == 3


def entries(client, **wanted):
    return client.get("/api/v1/audit", query_string=wanted).json["items"]


def test_each_change_is_one_entry_that_says_who_what_and_how(app, holder, client, register, make_key):
    key = make_key("admin")
    caller = Caller(app, key["key"])
    body = {"name": "noted", "target": "debug.echo", "schedule": HOURLY}
    task = caller.post("/tasks", body).json
    address = f"/tasks/{task['id']}"
    caller.call("PATCH", f"/api/v1{address}", json={"retry": {"max_attempts": 3}, "priority": 5})
    caller.post(f"{address}/pause", {"note": "why"})
    caller.post(f"{address}/resume")
    caller.post(f"{address}/resume")  # it is active: nothing changes, nothing is noted
    run = caller.post(f"{address}/run", {"kwargs": {"n": 1}}).json
    caller.post(f"/runs/{run['id']}/cancel")
    caller.call("DELETE", f"/api/v1{address}")
    found = entries(client, actor=key["id"])[::-1]
    assert [(entry["action"], entry["subject"]) for entry in found] == [
        ("create", "task"),
        ("change", "task"),
        ("pause", "task"),
        ("resume", "task"),
        ("run", "task"),
        ("cancel", "run"),
        ("delete", "task"),
    ]
    assert {(entry["actor_name"], entry["via"], entry["address"]) for entry in found} == {
        ("a admin", "api", "127.0.0.1")
    }
    created, changed, paused, resumed, ran, cancelled, deleted = found
    assert (created["before"], created["after"]["name"], created["subject_name"]) == (None, "noted", "noted")
    assert (changed["before"], changed["after"]) == ({"retry.max_attempts": 1}, {"retry.max_attempts": 3})
    assert (paused["before"], paused["after"]) == (
        {"state": "active", "note": None},
        {"state": "paused", "note": "why"},
    )
    assert resumed["after"] == {"state": "active", "note": None}
    assert (ran["before"], ran["after"]) == (None, {"run": run["id"], "kwargs": {"n": 1}})
    assert cancelled["subject_id"] == run["id"]
    assert cancelled["after"]["state"] == "cancelled"
    assert deleted["after"] == {"state": "deleted"}
    assert entries(client, subject="key")[0]["action"] == "create"
    assert key["key"] not in str(entries(client))
    assert {entry["subject_id"] for entry in entries(client, subject_id=task["id"])} == {task["id"]}


def test_what_is_refused_is_not_noted(client, task):
    before = len(entries(client))
    client.patch(f"/api/v1/tasks/{task['id']}", json={"priority": 7}, headers={"If-Match": '"9"'})
    client.post("/api/v1/tasks", json={"target": "debug.echo", "schedule": HOURLY, "name": task["name"]})
    assert len(entries(client)) == before


def test_many_tasks_are_many_entries(client):
    body = {"target": "debug.echo", "schedule": HOURLY} | TEAM
    client.post("/api/v1/tasks/bulk", json={"items": [body] * 5})
    client.post("/api/v1/tasks/bulk/pause", json={"label": "team:billing", "note": "x"})
    assert [entry["action"] for entry in entries(client)] == ["pause"] * 5 + ["create"] * 5


def seal():
    return db.transact(audit.seal)


def is_whole(chain):
    """Whether the chain holds, as a reader of REST computes it."""
    linked = sorted(chain, key=lambda entry: entry["position"])
    first = [{"position": 0, "hash": audit.FIRST}]
    return all(
        entry["position"] == before["position"] + 1
        and entry["previous"] == before["hash"]
        and entry["hash"] == audit.digest(entry)
        for before, entry in pairwise(first + linked)
    )


def test_the_chain_is_forged_later_and_shows_a_change_of_the_past(client, register):
    for n in range(3):
        register(name=f"one-{n}", kwargs={"n": 1.0, "text": "né", "deep": [{"big": 10**30}]})
    assert {entry["position"] for entry in entries(client)} == {None}
    assert seal() == 3
    register(name="another")
    assert (seal(), seal()) == (1, 0)
    chain = entries(client)
    assert [entry["position"] for entry in chain] == [4, 3, 2, 1]
    assert is_whole(chain)
    for name, other in [
        ("actor", "somebody"),
        ("after", {}),
        ("at", "2026-01-01T00:00:00.000Z"),
        ("previous", "0" * 64),
    ]:
        forged = [dict(entry) for entry in chain]
        forged[1][name] = other
        assert not is_whole(forged), name
        forged[1]["hash"] = audit.digest(forged[1])  # its own hash made right: the next one tells
        assert not is_whole(forged), name
    assert not is_whole(chain[:1] + chain[2:])


def test_two_beats_forge_one_chain(register):
    register()
    with db.transaction() as one, db.transaction() as other:
        assert audit.seal(one) == 1
        assert audit.seal(other) == 0


def test_pages_of_the_log_and_of_the_keys_follow_each_other(client, make_key):
    for _ in range(5):
        make_key()
    for address in ("keys", "audit"):
        seen, after = [], None
        while True:
            page = client.get(f"/api/v1/{address}", query_string={"limit": 2, "after": after or ""}).json
            seen += [item["id"] for item in page["items"]]
            after = page["next"]
            if after is None:
                break
        assert len(seen) == len(set(seen)) == 5
        huge = base64.urlsafe_b64encode(json.dumps(["9" * 30, "9" * 30]).encode()).decode()
        for wrong in ("nonsense", huge):
            assert client.get(f"/api/v1/{address}", query_string={"after": wrong}).status_code == 422


def test_a_kind_of_id_that_no_list_has_gives_nothing(client):
    assert client.get(f"/api/v1/audit?subject_id={uuid4()}").json == {"items": [], "next": None}


@pytest.mark.parametrize("path", sorted((ROOT / "web").rglob("*.py")), ids=lambda path: path.name)
def test_no_view_opens_a_transaction_in_nobodys_name(path):
    if path.name != "auth.py":
        opened = re.findall(r"db\.(?:transaction|statement|transact)\((.*)", path.read_text())
        assert all(given.startswith("by=") for given in opened)


def hints(listener):
    """How often the bell rang by now."""
    found = 0
    while (message := listener.get_message(timeout=0.2)) is not None:
        found += message["type"] == "message"
    return found


def test_the_bell_rings_once_a_change_is_committed_and_never_where_it_is_not(client, task, redis_client):
    listener = redis_client.pubsub()
    listener.subscribe(bell.CHANNEL)
    assert hints(listener) == 0
    client.patch(f"/api/v1/tasks/{task['id']}", json={"priority": 9})
    assert hints(listener) == 1
    client.post("/api/v1/tasks/import", json={"items": [BODIES["tasks.create"] | {"name": "x"}]})
    assert hints(listener) == 1
    client.patch(f"/api/v1/tasks/{task['id']}", json={"target": "no.such"})
    assert hints(listener) == 0
    with suppress(LookupError), db.transaction() as session:
        tasks.pause(session, db.now(session), UUID(task["id"]), None)
        raise LookupError
    assert hints(listener) == 0
    listener.close()
