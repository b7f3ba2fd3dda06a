"""Runs migrations on the database that DATABASE_URL names, one process at a time, beside whatever uses it."""

import logging
import re
import time

import psycopg
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from alembic import context
from app import db, models, settings

PARTITION = re.compile(r"(runs|attempts)_(\d{4}_\d{2}|default)$")

LOCK_TIMEOUT = "200ms"
"""For how long a migration waits for a table: whoever comes after it waits behind it."""

AGAIN_AFTER = 1.0
"""Seconds in which the others go on, until it tries again."""

PATIENCE = 600.0
"""Seconds of trying: a backup that is under way keeps tables for its whole time."""

log = logging.getLogger(__name__)  # what Alembic says of itself goes nowhere


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Partitions come and go by the month: the chore `make_partitions` owns them, not the models."""
    return not (kind == "table" and name is not None and PARTITION.match(name))


def migrate() -> None:
    engine = create_engine(
        settings.load().DATABASE_URL.get_secret_value(),
        connect_args={
            "connect_timeout": 10,
            "target_session_attrs": db.PRIMARY,
            "options": f"-c lock_timeout={LOCK_TIMEOUT}",
        },
    )
    with engine.connect() as connection:
        take_turns(connection)
        end = time.monotonic() + PATIENCE
        while not upgrade(connection, is_last=time.monotonic() > end):
            log.warning("a table is in use: the migration waits, the others go on")
            time.sleep(AGAIN_AFTER)
    engine.dispose()


def take_turns(connection: Connection) -> None:
    """Of two migration jobs at once the second waits here. It asks again and again: one statement that waits would
    keep the first one from making an index beside the others' work."""
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": db.Lock.MIGRATE}):
        connection.rollback()
        time.sleep(AGAIN_AFTER)
    connection.commit()


def upgrade(connection: Connection, *, is_last: bool) -> bool:
    """Runs what is left to run, each migration in a transaction of its own. False where others keep a table in use."""
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        include_name=is_ours,
        compare_type=True,
        transaction_per_migration=True,
    )
    try:
        with context.begin_transaction():
            context.run_migrations()
    except OperationalError as exc:
        if is_last or not isinstance(exc.orig, psycopg.errors.LockNotAvailable):
            raise
        return False
    return True


migrate()
