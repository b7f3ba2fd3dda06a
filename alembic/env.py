"""Runs migrations on the database that DATABASE_URL names, one process at a time."""

import re

from sqlalchemy import create_engine, text

from alembic import context
from app import db, models, settings

PARTITION = re.compile(r"(runs|attempts)_(\d{4}_\d{2}|default)$")


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Partitions come and go by the month: the chore `make_partitions` owns them, not the models."""
    return not (kind == "table" and name is not None and PARTITION.match(name))


def migrate() -> None:
    engine = create_engine(
        settings.load().DATABASE_URL.get_secret_value(),
        connect_args={"connect_timeout": 10, "target_session_attrs": db.PRIMARY},
    )
    with engine.connect() as connection:
        # two migration jobs at once take turns
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": db.Lock.MIGRATE})
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=models.Base.metadata,
            include_name=is_ours,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


migrate()
