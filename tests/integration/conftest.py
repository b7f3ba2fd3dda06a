"""The API as a client has it: an app on the tests' database, called with and without the administrator's key."""

import json
import threading
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url
from werkzeug.serving import make_server

from app import db, settings, tasks
from cli.__main__ import main as command_line

KEY = "punctual-test-key"
DEAD_PORT = 1
"""Nobody listens there."""


@pytest.fixture(scope="session")
def app(migrated):
    from web import main  # noqa: PLC0415 - only after the environment stands

    return main.create_app()


@pytest.fixture
def configure(monkeypatch):
    """Sets settings for the test."""

    def call(**given):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        settings.load.cache_clear()

    yield call
    monkeypatch.undo()
    settings.load.cache_clear()


@pytest.fixture
def create(fields):
    """Registers a task past the API; returns its row."""

    def call(**changed):
        with db.transaction() as session:
            return tasks.create(session, db.now(session), fields(**changed))

    return call


@pytest.fixture
def stranger(app, database):
    """A client without a key, of a web that has not looked at its stores yet."""
    from web.api import health  # noqa: PLC0415

    health.away.forget()
    return app.test_client()


@pytest.fixture
def client(app, database):
    """A client with the administrator's key."""
    made = app.test_client()
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
    return made


@pytest.fixture
def register(client):
    """Registers a task and returns it; it is due each hour where nothing else is said."""

    def call(**given):
        body = {"target": "debug.echo", "schedule": {"type": "interval", "every": 3600}} | given
        answer = client.post("/api/v1/tasks", json=body)
        assert answer.status_code == 201, answer.json
        return answer.json

    return call


@pytest.fixture
def task(register):
    return register()


@pytest.fixture
def run(client, task):
    """A run that waits."""
    answer = client.post(f"/api/v1/tasks/{task['id']}/run")
    assert answer.status_code == 202, answer.json
    return answer.json


@pytest.fixture(scope="module")
def address(app):
    """Where the API is served on this machine."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(address, database):
    """As above, on an empty database."""
    return address


@pytest.fixture
def punctual(url):
    """Calls the command line; what it prints never holds the key."""

    def call(*words, code=0, stdin=None, **env):
        given = {"PUNCTUAL_URL": url, "PUNCTUAL_KEY": KEY, "PUNCTUAL_KEY_FILE": None} | env
        result = CliRunner().invoke(command_line, words, input=stdin, env=given)
        assert result.exit_code == code, result.output
        assert KEY not in result.output
        return result

    return call


@pytest.fixture
def ask(punctual):
    """Calls the command line and reads the JSON that it prints."""

    def call(*words, **options):
        return json.loads(punctual(*words, "--json", **options).stdout)

    return call


@pytest.fixture
def naps(monkeypatch):
    """For how long this thread would have slept; it does not. The others do."""
    taken, sleep = [], time.sleep

    def nap(seconds):
        mine = threading.current_thread() is threading.main_thread()
        taken.append(seconds) if mine else sleep(seconds)

    monkeypatch.setattr(time, "sleep", nap)
    return taken


@pytest.fixture
def no_database(database, monkeypatch):
    """From here on PostgreSQL is away."""
    url = make_url(database).set(host="127.0.0.1", port=DEAD_PORT, query={})
    yield from _away(monkeypatch, "DATABASE_URL", url.render_as_string(hide_password=False))


@pytest.fixture
def no_redis(database, monkeypatch):
    """From here on Redis is away."""
    yield from _away(monkeypatch, "REDIS_URL", f"redis://127.0.0.1:{DEAD_PORT}/0")


@pytest.fixture
def no_broker(database, monkeypatch):
    """From here on the broker is away."""
    from app import broker  # noqa: PLC0415

    for way in ("broker_read_url", "broker_write_url"):
        monkeypatch.setattr(broker.celery_app.conf, way, f"amqp://127.0.0.1:{DEAD_PORT}//")


def _away(monkeypatch, name, url):
    _forget()
    monkeypatch.setenv(name, url)
    yield
    monkeypatch.undo()
    _forget()


def _forget():
    """Settings and connections are made again at next use."""
    from app import bell, db, settings  # noqa: PLC0415

    db.engines().usual.dispose()
    for cached in (settings.load, db.engines, bell.ringer):
        cached.cache_clear()
