"""The stage of a measurement: stores that are given or embedded, a database of its own, and what runs on them.

Redis and the queues are emptied before each measurement. So a Redis or a broker that is given must hold nothing
of anybody else's: `stores` refuses one that does.
"""

import os
import secrets
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import run
from typing import Any

import psycopg
from sqlalchemy import make_url

from deploy import embedded, processes

ROOT = Path(__file__).parent.parent
TABLES = "tasks, runs, attempts, summaries, keys, audit"
STOCK_QUEUE = "stock"

LAST_WORDS: deque[str] = deque(maxlen=30)
"""What the processes said last: it is shown where a measurement fails, and is noise where it does not."""

FOREIGN = "{what} is not empty: the benchmarks would empty it. Give them one of their own, or none: then they start it."


class NotOurs(Exception):
    """A store that is given holds what is somebody else's."""


class Missing(Exception):
    """What was waited for did not come; the text says what was missing."""


@contextmanager
def stores() -> Iterator[None]:
    """Points this process, and what it starts, at stores that are its own. Raises NotOurs."""
    with tempfile.TemporaryDirectory(prefix="punctual-bench-") as folder:
        data = Path(folder)
        data.chmod(0o711)  # as root the embedded PostgreSQL is another account's, which must be able to pass
        with embedded.stores(data) as urls:
            os.environ |= urls | {"LOG_LEVEL": "WARNING", processes.MARK: str(data)}
            os.environ |= {"SECRET_KEY": "bench", "PUNCTUAL_ADMIN_KEY": secrets.token_hex()}
            os.environ |= {"PUNCTUAL_RATE_PER_KEY": "0", "PUNCTUAL_RATE_PER_ADDRESS": "0"}
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            with _database(f"punctual_bench_{os.getpid()}"):
                os.environ |= _stock()
                _refuse_foreign()
                yield
                clean()


def clean() -> None:
    """Empties the tables, Redis and the queues. What the workers offer stays known."""
    for queue in _queues():
        _purge(queue)
    client().flushdb()
    with connection() as database:
        database.execute(f"TRUNCATE {TABLES}")
        database.execute("DROP TABLE IF EXISTS celery_taskmeta, celery_tasksetmeta")


def client() -> Any:
    """A client of the Redis that REDIS_URL names."""
    from app import bell  # noqa: PLC0415 - reads the settings, which stand only now

    return bell.connect(socket_timeout=60)


def connection() -> psycopg.Connection[Any]:
    """A connection of its own for what outlives the product's bounds of a statement: filling and emptying."""
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


@contextmanager
def running(lines: Mapping[str, str], env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Runs processes, by name and line, and stops them at the end."""
    whole = os.environ | (env or {})
    keepers = [processes.Keeper(_program(name, line, whole), _hear) for name, line in lines.items()]
    try:
        for keeper in keepers:
            keeper.start()
        yield
    finally:
        processes.stop(keepers)


def wait(ready: Callable[[], bool], *, within: float, missing: Callable[[], str], every: float = 0.1) -> None:
    """Polls until ready. Raises Missing at the deadline.

    A look that takes long is made less often, so that looking stays a small part of the work.
    """
    end = time.monotonic() + within
    while True:
        started = time.monotonic()
        if ready():
            return
        if started > end:
            raise Missing(f"after {within:.0f} s {missing()}")
        time.sleep(max(every, 20 * (time.monotonic() - started)))


def _hear(name: str, line: str) -> None:
    LAST_WORDS.append(f"{name}: {line}")


def _program(name: str, line: str, env: Mapping[str, str]) -> processes.Program:
    return processes.Program(name=name, argv=[sys.executable, "-m", *shlex.split(line)], cwd=ROOT, env=env)


@contextmanager
def _database(name: str) -> Iterator[None]:
    given = make_url(os.environ["DATABASE_URL"])
    admin = given.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(admin, autocommit=True)) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        os.environ["DATABASE_URL"] = given.set(database=name).render_as_string(hide_password=False)
        try:
            run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, check=True)
            yield
        finally:
            from app import db  # noqa: PLC0415 - as above

            db.engines().usual.dispose()
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _stock() -> dict[str, str]:
    """The same stores for stock Celery, whose result table has no zones: its sessions are set to UTC."""
    database = make_url(os.environ["DATABASE_URL"]).update_query_dict({"options": "-c timezone=UTC"})
    return {
        "STOCK_BROKER_URL": os.environ["BROKER_URL"],
        "STOCK_REDIS_URL": os.environ["REDIS_URL"],
        "STOCK_RESULT_BACKEND": f"db+{database.render_as_string(hide_password=False)}",
    }


def _refuse_foreign() -> None:
    if keys := client().dbsize():
        raise NotOurs(FOREIGN.format(what=f"the Redis database of REDIS_URL, with {keys} keys,"))
    for queue in _queues():
        if _messages(queue):
            raise NotOurs(FOREIGN.format(what=f"queue {queue!r} of BROKER_URL"))


def _queues() -> tuple[str, ...]:
    from app import messages  # noqa: PLC0415

    return messages.DEFAULT_QUEUE, messages.CALLS_QUEUE, messages.DEAD_LETTERS, STOCK_QUEUE


def _messages(queue: str) -> int:
    from app import broker  # noqa: PLC0415

    return broker.depth(queue) or 0


def _purge(queue: str) -> None:
    from app import broker  # noqa: PLC0415

    with broker.celery_app.connection_for_write() as broken_off:
        try:
            broken_off.default_channel.queue_purge(queue)
        except broken_off.channel_errors:  # it is not there
            return
