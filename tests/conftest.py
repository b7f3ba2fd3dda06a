"""Where the tests find PostgreSQL, Redis and the broker, and how each starts from nothing.

`script/test` sets the three URLs, to embedded stores where none is given. The database is made anew for a
session and emptied for each test; the broker's vhost and the Redis database are the tests' own to empty.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import plans
import pytest
from sqlalchemy import Engine, event, text
from stores import DATABASE, GIVEN, ROOT, need, new_database, poll, url_of

TABLES = (
    "tasks",
    "runs",
    "attempts",
    "targets",
    "answers",
    "nodes",
    "summaries",
    "keys",
    "audit",
    "incidents",
    "durations",
)

# Modules of ours read the settings when they are imported, so they stand before the first import.
if GIVEN["DATABASE_URL"]:
    os.environ |= {
        "DATABASE_URL": url_of(DATABASE),
        "SECRET_KEY": "a key for tests only",
        "PUNCTUAL_ADMIN_KEY": "punctual-test-key",
        "LOG_FORMAT": "console",
        # the tests send more than any client may: those of the limits set their own
        "PUNCTUAL_RATE_PER_KEY": "0",
        "PUNCTUAL_RATE_PER_ADDRESS": "0",
        "PUNCTUAL_RATE_WRONG_KEYS": "0",
    }


@pytest.fixture(scope="session")
def template() -> Iterator[str]:
    """The name of a migrated, empty database that nobody is connected to: others are cloned from it."""
    need("PostgreSQL, Redis and a broker: run script/test", there=all(GIVEN.values()))
    name = f"{DATABASE}_template"
    with new_database(name) as url:
        env = os.environ | {"DATABASE_URL": url}
        subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=env, check=True)
        yield name


@pytest.fixture(scope="session")
def migrated(template: str) -> Iterator[str]:
    """The database of this process."""
    with new_database(DATABASE, template) as url:
        yield url
        from app import db  # noqa: PLC0415 - only after the environment stands

        db.engines().usual.dispose()


ENDED_OR_NOT = text("SELECT count(*) FROM runs WHERE (finished_at IS NULL) <> (state = ANY(:open))")


@pytest.fixture(scope="session")
def planned_once(migrated: str) -> Iterator[dict[str, Any]]:
    """The statements of which PostgreSQL may be asked to plan them once, with their parameters until they were looked
    at."""
    from app import runs  # noqa: PLC0415

    seen: dict[str, Any] = dict(direct._compiled for direct in (runs._CLAIM, runs._SUCCEED))  # no event tells of these

    def note(connection, _cursor, statement, parameters, _context, executemany):
        if connection.get_execution_options().get("planned"):
            seen.setdefault(statement, parameters[0] if executemany else parameters)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def database(migrated: str, planned_once: dict[str, Any]) -> Iterator[str]:
    """The database, empty but for the targets that come with Punctual."""
    from app import db  # noqa: PLC0415
    from app.states import OPEN  # noqa: PLC0415

    with db.engines().usual.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(TABLES)}"))
        connection.execute(
            text(
                "INSERT INTO targets (name, queue, signature, documentation, last_seen_at) VALUES "
                "('debug.echo', 'default', '(*args, **kwargs)', 'Returns its arguments.', now()), "
                "('debug.fail', 'default', '(times=None)', 'Fails.', now()), "
                "('debug.sleep', 'default', '(seconds)', 'Sleeps.', now()), "
                "('http.request', 'default', '(url)', 'Calls a URL.', now())"
            )
        )
    yield migrated
    with db.engines().usual.begin() as connection:  # `keys.open_runs` counts on it
        assert connection.scalar(ENDED_OR_NOT, {"open": sorted(OPEN)}) == 0
        # one plan must be good for whatever parameters there are, and be it made when PostgreSQL knows of no task
        new = {statement: parameters for statement, parameters in planned_once.items() if parameters is not None}
        planned_once |= dict.fromkeys(new)
        if new:
            plans.check_all(connection.connection.driver_connection, new)
            with connection.begin_nested() as without:
                connection.execute(text("TRUNCATE tasks CASCADE"))
                connection.execute(text("ANALYZE tasks"))
                plans.check_all(connection.connection.driver_connection, new)
                without.rollback()


@pytest.fixture
def rabbitmq() -> str:
    """The URL of a RabbitMQ, for tests of what only AMQP has."""
    url = GIVEN["BROKER_URL"] or ""
    need("RabbitMQ: set BROKER_URL to an amqp:// address", there=url.startswith("amqp"))
    return url


@pytest.fixture
def fields():
    """Makes the fields of a task, as `schemas.TaskSchema` would load them."""

    def make(**changed):
        return {
            "name": None,
            "description": "",
            "labels": {},
            "target": "debug.echo",
            "args": [],
            "kwargs": {},
            "queue": "default",
            "priority": 5,
            "schedule": {"type": "interval", "every": 60},
            "starts_at": None,
            "ends_at": None,
            "max_runs": None,
            "jitter": timedelta(0),
            "overlap": "allow",
            "catchup": {"policy": "latest", "window": None},
            "retry": {
                "max_attempts": 1,
                "backoff": timedelta(seconds=5),
                "backoff_max": timedelta(minutes=10),
                "jitter": False,
            },
            "timeout": timedelta(minutes=5),
        } | changed

    return make


class Postbox:
    """Stands where the broker's publisher stands: keeps what it was given, and takes it or not, as told."""

    def __init__(self):
        self.parcels = []
        self.takes = True
        self.answers = True

    def reaches(self):
        return self.answers

    def publish(self, batch):
        self.parcels += batch
        return list(batch) if self.takes else []

    @property
    def sent(self):
        """The messages of all runs, in packs or not."""
        return [message for parcel in self.parcels for message in parcel.messages]

    @property
    def runs(self) -> list[UUID]:
        return [message.ticket.run for message in self.sent]


@pytest.fixture
def postbox():
    return Postbox()


@pytest.fixture
def statements():
    """Collects the SQL that is sent within it."""
    from sqlalchemy import event  # noqa: PLC0415

    from app import db  # noqa: PLC0415

    @contextmanager
    def collect():
        seen = []

        def note(_connection, _cursor, statement, *_):
            seen.append(statement)

        event.listen(db.engines().usual, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            event.remove(db.engines().usual, "before_cursor_execute", note)

    return collect


@pytest.fixture
def redis_client(migrated):
    """A client of the tests' Redis, emptied."""
    from app import bell  # noqa: PLC0415

    client = bell.connect()
    client.flushdb()
    with closing(client):
        yield client


@pytest.fixture
def publisher(migrated, rabbitmq):
    """A publisher on RabbitMQ, with its queues empty."""
    from app import broker, publishing  # noqa: PLC0415

    made = publishing.Publisher()
    broker.declare()
    with broker.celery_app.connection_for_write() as connection:
        for name in ("default", "punctual", "punctual.dead", "test.lost"):
            connection.default_channel.queue_delete(name)
    yield made
    made.close()


@pytest.fixture
def eventually():
    """Polls until a look is true and returns what it saw; fails at the deadline."""
    return poll
