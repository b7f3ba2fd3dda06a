"""An API that holds: repeats, stale changes, floods, proxies, browsers, secrets."""

import io
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import limits.storage
import pytest
import redis
import structlog
from sqlalchemy import text

from app import db, settings
from app.models import Answer
from app.states import RunState
from web import main

TASKS = "/api/v1/tasks"
BODY = {"target": "debug.echo", "schedule": {"type": "interval", "every": 3600}}
KEY = "punctual-test-key"


@pytest.fixture
def app_with(migrated, database, monkeypatch):
    """Makes an app of its own with other settings."""

    def make(**changed):
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        settings.load.cache_clear()
        return main.create_app()

    yield make
    monkeypatch.undo()
    settings.load.cache_clear()


def signed_in(app):
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
    return client


def repeat(client, key, body=None, address=TASKS):
    return client.post(address, json=BODY if body is None else body, headers={"Idempotency-Key": key})


def whole(answer):
    """What a client has of an answer, byte for byte."""
    kept = {name: value for name, value in answer.headers.items() if name in {"Content-Type", "ETag", "Location"}}
    return answer.status_code, kept, answer.data


def test_a_repeat_gets_the_first_answer_byte_for_byte_and_does_nothing(client):
    first = repeat(client, "one")
    client.patch(f"{TASKS}/{first.json['id']}", json={"priority": 1})
    assert whole(repeat(client, "one")) == whole(first)
    assert first.headers["ETag"] == '"1"'
    assert len(client.get(TASKS).json["items"]) == 1
    assert whole(repeat(client, "two"))[2] != whole(first)[2]


@pytest.mark.parametrize("action", ["run", "pause", "backfill"])
def test_every_post_that_changes_something_can_be_repeated(client, task, action):
    since = datetime.now(UTC) - timedelta(days=1)
    span = {"since": since.isoformat(), "until": (since + timedelta(hours=2)).isoformat()}
    body = span if action == "backfill" else {}
    first = repeat(client, "one", body, f"{TASKS}/{task['id']}/{action}")
    assert first.status_code < 300
    again = repeat(client, "one", body, f"{TASKS}/{task['id']}/{action}")
    assert whole(again) == whole(first)
    assert len(client.get("/api/v1/runs").json["items"]) <= 2 + (action != "backfill")


def test_the_same_key_with_another_body_is_a_mistake(client):
    repeat(client, "one")
    answer = repeat(client, "one", BODY | {"priority": 1})
    assert answer.status_code == 422
    assert answer.json["errors"]["idempotency_key"]


def test_keys_are_told_apart_by_route_and_by_caller(client, app, task):
    made = client.post("/api/v1/keys", json={"name": "x", "role": "editor"}).json
    other = app.test_client()
    other.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {made['key']}"
    answers = [repeat(client, "one"), repeat(other, "one"), repeat(client, "one", {}, f"{TASKS}/{task['id']}/pause")]
    assert [answer.status_code for answer in answers] == [201, 201, 200]


def test_an_error_is_not_kept(client):
    assert repeat(client, "one", BODY | {"priority": 99}).status_code == 422
    assert repeat(client, "one").status_code == 201


def test_a_day_later_the_key_is_as_new(client):
    first = repeat(client, "one")
    with db.transaction() as session:
        [kept] = session.query(Answer).all()
        kept.created_at -= kept.created_at.resolution * 1_000_000 * 86_400
    assert repeat(client, "one").json["id"] != first.json["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é"])
def test_what_is_no_key_is_refused(client, key):
    assert repeat(client, key).status_code == 400


def test_an_answer_that_is_a_secret_is_never_kept(client):
    answer = client.post("/api/v1/keys", json={"name": "x", "role": "viewer"}, headers={"Idempotency-Key": "one"})
    assert answer.status_code == 400
    assert "secret" in answer.json["message"]


def test_fifty_posts_at_once_with_one_key_make_one_task(app, client):
    start = threading.Barrier(50)

    def post(_):
        start.wait()
        return repeat(signed_in(app), "one")

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    made = [answer for answer in answers if answer.status_code == 201]
    assert made
    assert len({answer.data for answer in made}) == 1
    assert {answer.status_code for answer in answers} <= {201, 409, 503}
    assert len(client.get(TASKS).json["items"]) == 1


def test_a_first_request_that_is_still_at_work_refuses_a_second(app, client):
    from app import answers  # noqa: PLC0415

    entered, leave = threading.Event(), threading.Event()

    def slow():
        entered.set()
        leave.wait(10)
        return {}

    def hold():
        with db.transaction() as session:
            route = f"POST {TASKS}? admin"
            request = answers.Request(route=route, key="one", given="")
            answers.once(session, db.now(session), request, slow, wait=False)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert entered.wait(10)
        assert repeat(client, "one").status_code == 409
        leave.set()
        held.result()


CONDITIONAL = [("PATCH", "", {"priority": 1}), ("DELETE", "", None), ("POST", "/pause", {}), ("POST", "/resume", {})]


@pytest.mark.parametrize(("method", "action", "body"), CONDITIONAL)
def test_a_stale_change_of_a_task_changes_nothing(client, task, method, action, body):
    address = f"{TASKS}/{task['id']}{action}"
    for stale in ('"2"', '"0"', 'W/"1"', '"x"', '""'):
        answer = client.open(address, method=method, json=body, headers={"If-Match": stale})
        assert answer.status_code == 412, stale
    assert client.get(f"{TASKS}/{task['id']}").json["version"] == 1
    assert client.open(address, method=method, json=body, headers={"If-Match": "1"}).status_code == 400
    assert client.open(address, method=method, json=body, headers={"If-Match": '"1"'}).status_code < 300


def test_a_stale_change_of_a_run_changes_nothing(client, run):
    address = f"/api/v1/runs/{run['id']}"
    tag = client.get(address).headers["ETag"]
    assert tag == '"pending.1"'
    assert client.post(f"{address}/cancel", headers={"If-Match": '"running.1"'}).status_code == 412
    answer = client.post(f"{address}/cancel", headers={"If-Match": tag})
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"cancelled.1"')
    assert client.post(f"{address}/retry", headers={"If-Match": tag}).status_code == 412


def test_where_it_is_demanded_a_change_must_say_what_it_is_meant_for(app_with):
    client = signed_in(app_with(PUNCTUAL_REQUIRE_IF_MATCH="on"))
    task = client.post(TASKS, json=BODY).json
    run = client.post(f"{TASKS}/{task['id']}/run").json
    changes = [(method, f"{TASKS}/{task['id']}{action}", body) for method, action, body in CONDITIONAL]
    changes += [("POST", f"/api/v1/runs/{run['id']}/{action}", None) for action in ("cancel", "retry")]
    for method, address, body in changes:
        answer = client.open(address, method=method, json=body)
        assert (answer.status_code, answer.json["code"]) == (428, "unconditional"), address
    assert client.post(f"/api/v1/runs/{run['id']}/cancel", headers={"If-Match": "*"}).status_code == 200


def test_a_key_that_asks_too_often_is_told_when_there_is_room(app_with, redis_client):
    app = app_with(PUNCTUAL_RATE_PER_KEY="5")
    client = signed_in(app)
    answers = [client.get(TASKS) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["4", "3", "2", "1", "0", "0"]
    assert answers[0].headers["RateLimit-Limit"] == "5"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 61
    assert (answers[-1].json["code"], answers[-1].json["status"]) == ("too_many", 429)
    made = main.create_app().test_client().post("/api/v1/keys")  # another key, no key at all: not this one's count
    assert made.status_code == 401
    assert app.test_client().get("/healthz").status_code == 200
    # another web counts along
    assert signed_in(main.create_app()).get(TASKS).status_code == 429


def test_an_address_that_asks_too_often_is_refused_whatever_its_keys(app_with, redis_client):
    client = signed_in(app_with(PUNCTUAL_RATE_PER_ADDRESS="3"))
    assert [client.get(TASKS).status_code for _ in range(4)] == [200, 200, 200, 429]
    elsewhere = {"REMOTE_ADDR": "192.0.2.9"}
    assert client.get(TASKS, environ_overrides=elsewhere).status_code == 200


def test_keys_cannot_be_tried_for_ever_and_a_good_one_goes_on(app_with, redis_client):
    app = app_with(PUNCTUAL_RATE_WRONG_KEYS="3")
    stranger, client = app.test_client(), signed_in(app)
    assert [stranger.get(TASKS).status_code for _ in range(4)] == [401, 401, 401, 429]
    assert stranger.post("/sign-in", data={}).status_code == 429
    assert client.get(TASKS).status_code == 200


def test_without_redis_the_limits_say_so_once_and_refuse_nobody(app_with, monkeypatch, caplog, no_redis):
    client = signed_in(app_with(PUNCTUAL_RATE_PER_KEY="50"))
    with caplog.at_level(logging.WARNING):
        assert {client.get(TASKS).status_code for _ in range(10)} == {200}
    assert len([record for record in caplog.records if record.name == "flask-limiter"]) == 1


@pytest.mark.parametrize("where", ["acquire_sliding_window_entry", "get_sliding_window"])
def test_requests_that_find_redis_away_at_once_are_all_answered(app_with, redis_client, monkeypatch, caplog, where):
    app = app_with(PUNCTUAL_RATE_PER_KEY="50")
    together = threading.Barrier(4, timeout=10)

    def break_off(*_args, **_options):
        together.wait()
        raise redis.ConnectionError

    monkeypatch.setattr(limits.storage.RedisStorage, where, break_off)
    with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.WARNING):
        answers = list(pool.map(lambda _: signed_in(app).get(TASKS), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert {record.getMessage() for record in caplog.records} == {
        "Rate limit storage unreachable - falling back to in-memory storage"
    }


@pytest.mark.parametrize(
    ("hops", "given", "address"),
    [
        ("0", "198.51.100.1", "127.0.0.1"),
        ("1", "198.51.100.1", "198.51.100.1"),
        ("1", "203.0.113.5, 198.51.100.1", "198.51.100.1"),
        ("2", "203.0.113.5, 198.51.100.1", "203.0.113.5"),
    ],
)
def test_only_so_many_proxies_are_believed_as_there_are(app_with, hops, given, address):
    client = signed_in(app_with(PUNCTUAL_TRUSTED_PROXIES=hops))
    client.post(TASKS, json=BODY, headers={"X-Forwarded-For": given})
    assert client.get("/api/v1/audit").json["items"][0]["address"] == address


def test_behind_tls_browsers_are_told_to_keep_to_it_and_cookies_too(app_with):
    app = app_with(PUNCTUAL_TRUSTED_PROXIES="1")
    plain, over_tls = ({"X-Forwarded-Proto": proto} for proto in ("http", "https"))
    assert "Strict-Transport-Security" not in app.test_client().get("/sign-in", headers=plain).headers
    answer = app.test_client().get("/sign-in", headers=over_tls)
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000")
    assert "Secure" in answer.headers["Set-Cookie"]
    for flag in ("HttpOnly", "SameSite=Lax"):
        assert flag in answer.headers["Set-Cookie"]


def test_every_answer_of_the_api_is_hardened(client):
    for address in (TASKS, "/api/v1/nothing", "/healthz", "/api/v1/openapi.json"):
        headers = client.get(address).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Server" not in headers
    assert client.get(TASKS).headers["Cache-Control"] == "no-store"


def test_no_page_of_another_origin_may_call_unless_it_is_named(app_with, client):
    origin = {"Origin": "https://ops.example.com"}
    asking = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for answer in (client.get(TASKS, headers=origin), client.options(TASKS, headers=asking)):
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    opened = signed_in(app_with(PUNCTUAL_CORS_ORIGINS="https://ops.example.com"))
    answer = opened.get(TASKS, headers=origin)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://ops.example.com"
    assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "authorization" in opened.options(TASKS, headers=asking).headers["Access-Control-Allow-Headers"].lower()
    assert "Access-Control-Allow-Origin" not in opened.get(TASKS, headers={"Origin": "https://evil.example"}).headers
    assert "Access-Control-Allow-Origin" not in opened.get("/tasks", headers=origin).headers


SECRET = "s3cr3t-that-nobody-may-read"


@contextmanager
def listening():
    """All that is logged meanwhile, as it would be written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def test_no_secret_reaches_a_log_or_an_error(client, app, stranger, task, monkeypatch):
    made = client.post("/api/v1/keys", json={"name": "x", "role": "editor"}).json
    headers = {"Authorization": f"Bearer {SECRET}"}
    with_secret = BODY | {"kwargs": {"password": SECRET}}
    with listening() as log:
        answers = [
            stranger.get(TASKS, headers=headers),
            stranger.get(f"{TASKS}?key={SECRET}", headers=headers),
            client.post(TASKS, json=with_secret | {"priority": 99}),
            client.post(TASKS, json=with_secret | {"target": "http.request"}),
            client.post(TASKS, json=BODY | {"name": "\ud800" + SECRET}),
            client.post(f"{TASKS}/{task['id']}/run", json={"kwargs": {"token": SECRET}}),
            client.post(TASKS, json=BODY, headers={"Idempotency-Key": f"{SECRET} "}),
            client.post(TASKS, data=SECRET, content_type="application/json"),
            app.test_client().get(TASKS, headers={"Authorization": f"Bearer {made['key']}"}),
        ]
        monkeypatch.setattr("app.queries.tasks", lambda *_, **__: 1 / 0)
        answers.append(app.test_client().get(TASKS, headers={"Authorization": f"Bearer {made['key']}"}))
    assert answers[-1].status_code == 500
    shown = stranger.get("/metrics")
    assert 'endpoint="tasks.create"' in shown.text
    written = log.getvalue()
    assert "ZeroDivisionError" in written
    for hidden in (SECRET, made["key"], made["key"][17:49]):
        assert hidden not in written
        assert hidden not in shown.text
        for answer in answers:
            if answer.status_code >= 400:
                assert hidden not in answer.text


def test_the_end_of_a_run_is_waited_for(client, run):
    timer = threading.Timer(0.5, lambda: client.post(f"/api/v1/runs/{run['id']}/cancel"))
    timer.start()
    answer = client.get(f"/api/v1/runs/{run['id']}?wait=20")
    timer.join()
    assert answer.json["state"] == RunState.CANCELLED
    assert client.get(f"/api/v1/runs/{run['id']}?wait=0").status_code == 200


def test_a_run_that_does_not_end_is_shown_as_it_is(client, run):
    assert client.get(f"/api/v1/runs/{run['id']}?wait=1").json["state"] == RunState.PENDING
    for wrong in ("61", "-1", "x"):
        assert client.get(f"/api/v1/runs/{run['id']}?wait={wrong}").status_code == 422


def test_no_more_requests_wait_than_there_is_room_for(app, client, run):
    from web.api import runs as view  # noqa: PLC0415

    for _ in range(view.MAX_WAITING):
        assert view._waiting.acquire(blocking=False)
    try:
        assert client.get(f"/api/v1/runs/{run['id']}?wait=60").json["state"] == RunState.PENDING
    finally:
        for _ in range(view.MAX_WAITING):
            view._waiting.release()


def test_limits_are_kept_in_redis_under_their_own_prefix(app_with, redis_client):
    signed_in(app_with(PUNCTUAL_RATE_PER_KEY="50")).get(TASKS)
    assert isinstance(redis_client, redis.Redis)
    names = list(redis_client.scan_iter("*"))
    assert names
    assert all(name.startswith("LIMITS:") for name in names), json.dumps(names)


@pytest.mark.parametrize(("given", "kept"), [("abc-1.x_Y", True), ("", False), ("a b", False), ("x" * 65, False)])
def test_each_request_has_an_id_in_its_answer_and_in_what_is_logged(client, monkeypatch, given, kept):
    seen = {}

    def targets(_session):
        seen.update(structlog.contextvars.get_contextvars())
        return []

    monkeypatch.setattr("app.queries.targets", targets)
    answer = client.get("/api/v1/targets", headers={"X-Request-Id": given})
    assert seen == {"request": answer.headers["X-Request-Id"]}
    assert (answer.headers["X-Request-Id"] == given) is kept
    assert structlog.contextvars.get_contextvars() == {}
    assert client.get("/api/v1/nothing").headers["X-Request-Id"] != answer.headers["X-Request-Id"]


def test_a_change_from_one_to_true_is_a_change(client, task):
    address = f"{TASKS}/{task['id']}"
    for value in (1, True, 1.0, 0, False):
        client.patch(address, json={"kwargs": {"x": value}, "args": [value]})
        stored = client.get(address).json
        assert json.dumps([stored["kwargs"]["x"], stored["args"][0]]) == json.dumps([value, value])
    log = client.get(f"/api/v1/audit?subject_id={task['id']}&action=change").json["items"]
    assert [json.dumps(entry["after"]["kwargs"]["x"]) for entry in log] == ["false", "0", "1.0", "true", "1"]


def test_a_long_body_may_be_repeated_where_it_may_be_sent_once(client):
    items = [BODY | {"name": f"long-{n}", "description": "x" * 1000} for n in range(100)]
    for address in ("bulk", "import"):
        body = {"items": [item | {"name": f"{address}-{item['name']}"} for item in items]}
        first = repeat(client, address, body, f"{TASKS}/{address}")
        assert first.status_code < 300, first.json
        assert repeat(client, address, body, f"{TASKS}/{address}").data == first.data


def test_a_browser_may_ask_without_a_key_whether_a_page_may_call(app_with):
    stranger = app_with(PUNCTUAL_CORS_ORIGINS="https://ops.example.com").test_client()
    asking = {"Origin": "https://ops.example.com", "Access-Control-Request-Method": "PATCH"}
    answer = stranger.options(f"{TASKS}/{uuid4()}", headers=asking | {"Access-Control-Request-Headers": "if-match"})
    assert answer.status_code == 200
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
    assert stranger.options(TASKS).status_code == 401
    assert stranger.get(TASKS, headers=asking).status_code == 401


def test_retry_after_says_when_the_store_may_be_back_and_not_when_the_count_is_over(
    app_with, redis_client, no_database
):
    answer = signed_in(app_with(PUNCTUAL_RATE_PER_KEY="50")).get(TASKS)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "RateLimit-Remaining" in answer.headers


def test_an_answer_that_refuses_nothing_says_nothing_of_trying_again(app_with, redis_client):
    app = app_with(PUNCTUAL_RATE_PER_KEY="50")
    assert "Retry-After" not in signed_in(app).get(TASKS).headers
    assert "Retry-After" not in app.test_client().get(TASKS).headers


def test_what_takes_too_long_is_said_to_and_not_that_a_store_is_away(client, monkeypatch):
    def sleep(session, **_):
        session.execute(text("SET LOCAL statement_timeout = 50"))
        session.execute(text("SELECT pg_sleep(1)"))

    monkeypatch.setattr("app.queries.tasks", sleep)
    answer = client.get(TASKS)
    assert answer.status_code == 503
    assert "took too long" in answer.json["message"]


def test_probes_by_the_hundred_are_one_look_a_second(app, monkeypatch):
    from web.api import health  # noqa: PLC0415

    looks = []
    monkeypatch.setattr(health, "answers", lambda ping: looks.append(ping) or True)
    health.away.forget()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: app.test_client().get("/readyz").status_code, range(100)))
    assert found == {200}
    assert len(looks) <= (time.monotonic() - began + 1) * len(health.STORES)
