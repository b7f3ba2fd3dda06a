"""Lists and statistics from a real streaming replica that follows, that lags, and that is away."""

import json
import logging
import re
import time
from contextlib import closing
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from replicas import held_back, plain, replica
from sqlalchemy import func, make_url, select
from sqlalchemy.exc import DBAPIError

import app.replica
from app import attempts, dispatch, outbox, runs, settings, tasks
from app import replica as reads

KEY = "punctual-test-key"


@pytest.fixture(scope="module")
def server(migrated):
    with replica() as url:
        yield url


@pytest.fixture
def read_url(server, migrated):
    """The URL of the tests' database on the replica."""
    return make_url(server).set(database=make_url(migrated).database).render_as_string(hide_password=False)


@pytest.fixture
def use(monkeypatch):
    """Has this process read from what is at a URL, and look only when it is told to."""
    made = []

    def start(url):
        monkeypatch.setattr(app.replica.Follower, "start", lambda _: None)
        monkeypatch.setenv("DATABASE_READ_URL", url)
        settings.load.cache_clear()
        reads.follower.cache_clear()
        made.append(reads.follower())
        return made[-1]

    yield start
    for follower in made:
        follower.engine.dispose()
    monkeypatch.undo()
    settings.load.cache_clear()
    reads.follower.cache_clear()


@pytest.fixture
def following(use, read_url, eventually):
    """A replica that follows closely."""
    follower = use(read_url)
    eventually(lambda: follower.look() or follower.is_close())
    return follower


def names(client):
    answer = client.get("/api/v1/tasks")
    assert answer.status_code == 200, answer.json
    return [task["name"] for task in answer.json["items"]]


def caught_up(follower):
    """Whether it has replayed all that was committed before this."""
    began = time.monotonic()
    follower.look()
    while follower.reached < began:
        follower.look()
    return True


def test_lists_come_from_the_replica_and_one_task_from_the_primary(client, register, following, read_url):
    register(name="before")
    caught_up(following)
    with held_back(read_url):
        task = register(name="after")
        assert names(client) == ["before"]
        exported = client.get("/api/v1/tasks/export").data.splitlines()
        assert [json.loads(line)["name"] for line in exported] == ["before"]
        client.post(f"/api/v1/tasks/{task['id']}/run")
        assert client.get("/api/v1/runs").json["items"] == []
        assert client.get("/api/v1/stats").json["runs"]["waiting"] == 0
        assert client.get(f"/api/v1/tasks/{task['id']}").json["name"] == "after"
        assert len(client.get(f"/api/v1/tasks/{task['id']}/runs").json["items"]) == 1
        assert client.get(f"/api/v1/stats?task_id={task['id']}").status_code == 200
        run = client.post(f"/api/v1/tasks/{task['id']}/run").json
        assert client.get(f"/api/v1/runs/{run['id']}").json["state"] == "pending"
    caught_up(following)
    assert names(client) == ["after", "before"]


def test_one_that_lags_is_not_read_until_it_has_caught_up(
    client, register, following, read_url, monkeypatch, caplog, eventually
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(app.replica, "MAX_LAG", 0.5)
    with held_back(read_url):
        register(name="new")
        following.look()  # from here on the primary is further than what was replayed
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            following.look()
            time.sleep(0.05)
        assert names(client) == ["new"]
        following.look()
        assert caplog.text.count("it lags by more than") == 1
    eventually(lambda: caught_up(following) and following.is_close())
    assert "the replica follows" in caplog.text


def test_where_nothing_changes_a_replica_does_not_grow_old(following, monkeypatch, eventually):
    monkeypatch.setattr(app.replica, "MAX_LAG", 0.3)
    for _ in range(10):
        time.sleep(0.05)
        eventually(lambda: caught_up(following) and following.is_close())


def test_one_that_is_away_is_not_missed(client, register, use, caplog):
    follower = use("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    register(name="there")
    follower.look()
    assert names(client) == ["there"]
    assert caplog.text.count("does not answer") == 1
    follower.look()
    assert caplog.text.count("does not answer") == 1


def test_one_that_goes_away_between_two_looks_fails_once(client, register, following, server, read_url, migrated):
    register(name="there")
    caught_up(following)
    assert names(client) == ["there"]
    with closing(psycopg.connect(plain(server), autocommit=True)) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [make_url(migrated).database]
        )
    assert client.get("/api/v1/tasks").status_code == 503
    assert names(client) == ["there"]
    following.look()
    caught_up(following)
    assert following.is_close()


def test_what_is_no_replica_is_not_read(use, migrated, caplog):
    follower = use(migrated)
    follower.look()
    assert not follower.is_close()
    assert "it is no replica" in caplog.text


NOW = datetime.now(UTC)
DECISIONS = {
    "fire": lambda session, task: dispatch.record_due(session, NOW, [task]),
    "pause": lambda session, task: tasks.pause(session, NOW, task, None),
    "change": lambda session, task: tasks.change(session, NOW, task, {"description": "other"}),
    "run": lambda session, task: tasks.run(session, NOW, task, None, None),
    "backfill": lambda session, task: tasks.backfill(session, NOW, task, []),
    "take what is pending": lambda session, _: outbox.take_pending(session),
    "cancel": lambda session, _: runs.cancel(session, NOW, UUID(int=1)),
    "rescue": lambda session, _: attempts.rescue_lost(session),
}


@pytest.mark.parametrize("where", ["replica", "primary"])
def test_nothing_is_decided_on_what_may_be_old(register, request, where):
    task = UUID(register()["id"])
    if where == "replica":
        caught_up(request.getfixturevalue("following"))
    with reads.reading() as session:
        assert session.scalar(select(func.pg_is_in_recovery())) is (where == "replica")
    for decide in DECISIONS.values():
        with pytest.raises(DBAPIError, match="read-only transaction"), reads.reading() as session:
            decide(session, task)


def token(browser, address):
    return re.search(r'name="csrf_token" value="([^"]+)"', browser.get(address).text)[1]


@pytest.fixture
def browsers(app):
    """Two browsers that are signed in."""
    made = [app.test_client(), app.test_client()]
    for browser in made:
        browser.post("/sign-in", data={"csrf_token": token(browser, "/sign-in"), "key": KEY})
    return made


def test_whoever_changes_something_by_a_page_sees_it_at_once_and_others_when_it_has_come(browsers, following, read_url):
    mine, other = browsers
    fields = {"target": "debug.echo", "kind": "interval", "every": "1", "unit": "3600", "timezone": "UTC"}
    with held_back(read_url):
        fields |= {"name": "mine", "save": "yes", "csrf_token": token(mine, "/tasks/new")}
        assert mine.post("/tasks/new", data=fields).status_code == 303
        assert "mine" in mine.get("/tasks").text
        for address in ("/", "/tasks", "/week"):
            shown = other.get(address)
            assert (shown.status_code, "mine" in shown.text) == (200, False), address
