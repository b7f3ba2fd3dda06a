"""A stack of its own to measure: stores that are given or embedded, a new database, processes of the Procfile."""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import run

import psycopg
from sqlalchemy import make_url

from deploy import embedded, processes

ROOT = Path(__file__).parent.parent


@contextmanager
def stack(beats: int = 2, processes_per_worker: int = 2) -> Iterator[None]:
    """Runs beats and one worker, and points this process's settings at the same stores."""
    with tempfile.TemporaryDirectory(prefix="punctual-bench-") as folder:
        data = Path(folder)
        data.chmod(0o711)  # as root the embedded PostgreSQL is another account's, which must be able to pass
        with embedded.stores(data) as urls:
            os.environ |= urls
            with _database(f"punctual_bench_{os.getpid()}"):
                keepers = [_keeper(f"beat.{n}", "celery -A beat.main:celery_app beat", data) for n in range(beats)]
                worker = f"celery -A workers.main:celery_app worker --concurrency={processes_per_worker}"
                keepers.append(_keeper("worker", worker, data))
                try:
                    for keeper in keepers:
                        keeper.start()
                    processes.wait_until(_is_ready, keepers, within=60, what="the worker")
                    yield
                finally:
                    processes.stop(keepers)


@contextmanager
def _database(name: str) -> Iterator[None]:
    given = make_url(os.environ["DATABASE_URL"])
    admin = given.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(admin, autocommit=True)) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        os.environ["DATABASE_URL"] = given.set(database=name).render_as_string(hide_password=False)
        try:
            run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, check=True)
            yield
        finally:
            from app import db  # noqa: PLC0415 - reads the settings, which stand only now

            db.engines()[0].dispose()
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _keeper(name: str, line: str, data: Path) -> processes.Keeper:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "LOG_LEVEL": "WARNING", processes.MARK: str(data)}
    argv = [sys.executable, "-m", *shlex.split(line)]
    return processes.Keeper(processes.Program(name=name, argv=argv, cwd=ROOT, env=env), lambda *_: None)


def _is_ready() -> bool:
    from app import db, queries  # noqa: PLC0415

    with db.transaction() as session:
        return any(target.name == "debug.echo" for target in queries.targets(session))
