"""The engine and the transaction. Knows no tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app import errors, settings

AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What SQLAlchemy raises where the server cannot be reached, went away, or has no connection to give."""

LIBPQ_OPTIONS = (
    "-c statement_timeout=15000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000 -c timezone=UTC"
)


@cache
def engine() -> Engine:
    """This process's engine. Connections must not cross a fork: a child calls `forget` first."""
    return create_engine(
        settings.load().DATABASE_URL.get_secret_value(),
        pool_size=5,
        max_overflow=10,
        pool_timeout=3,
        pool_pre_ping=True,
        pool_use_lifo=True,
        hide_parameters=True,  # arguments of tasks may hold secrets, and errors are logged
        connect_args={
            "connect_timeout": 3,
            "target_session_attrs": "read-write",  # of several hosts, only the primary decides
            "application_name": "punctual",
            "options": LIBPQ_OPTIONS,
            # a silent link is noticed in seconds, not in the kernel's two hours
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 8000,
        },
    )


def forget() -> None:
    """Drops the connections inherited over a fork without closing them: they are the parent's."""
    engine().dispose(close=False)


@contextmanager
def transaction() -> Iterator[Session]:
    """A session whose work is committed at the end, or not at all. Raises Unavailable where PostgreSQL is away."""
    try:
        with Session(engine(), expire_on_commit=False) as session, session.begin():
            yield session
    except AWAY as exc:
        raise errors.Unavailable from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise errors.Unavailable from exc
        raise


def now(session: Session) -> datetime:
    """The primary's clock: one clock for every stamp and deadline, whatever the machines' own clocks say."""
    moment: datetime = session.scalars(select(func.clock_timestamp())).one()
    return moment


def ping() -> None:
    """Raises Unavailable where the primary does not answer."""
    with transaction() as session:
        now(session)
