"""The stores that the tests are given, and databases made on them. Imported before any module of ours."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

ROOT = Path(__file__).parent.parent
GIVEN = {name: os.environ.get(name) for name in ("DATABASE_URL", "REDIS_URL", "BROKER_URL")}
DATABASE = f"punctual_test_{uuid4().hex[:8]}"
IN_CI = bool(os.environ.get("CI"))
"""Where nothing that is needed may be missing, and other tests run beside on the cores of a slower machine."""


def url_of(database: str) -> str:
    """The URL of a database on the given server."""
    return make_url(GIVEN["DATABASE_URL"]).set(database=database).render_as_string(hide_password=False)


BROKER = "rabbitmq" if (GIVEN["BROKER_URL"] or "").startswith("amqp") else "redis"
ON_ONE_BROKER = pytest.mark.parametrize("stack", [BROKER], indirect=True)
"""For what no broker changes: it runs on the one that is given, and not on both."""

BY_HAND = pytest.mark.skipif("DRILL" not in os.environ, reason="takes minutes of two cores: set DRILL=1")
"""What CI has no time for. Each is run before what it is about is changed, and before a release."""


def need(what: str, *, there: object) -> None:
    """Skips a test that needs `what` where it is not there; in CI that is a failure."""
    if not there:
        message = f"needs {what}"
        pytest.fail(message) if IN_CI else pytest.skip(message)


@contextmanager
def new_database(name: str, template: str = "template1") -> Iterator[str]:
    """A database of that name, dropped at the end; yields its URL."""
    admin = make_url(GIVEN["DATABASE_URL"]).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(admin, autocommit=True)) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')  # type: ignore[arg-type]
        try:
            yield url_of(name)
        finally:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]


def poll(look, within=10.0, every=0.02):
    end = time.monotonic() + within
    while not (seen := look()):
        if time.monotonic() > end:
            pytest.fail(f"not within {within} s: {seen!r}")
        time.sleep(every)
    return seen
