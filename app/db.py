"""The engine and the transaction. Knows no tables."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from enum import IntEnum, unique
from functools import cache, cached_property
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import sql
from psycopg.types.array import ListBinaryDumper
from psycopg.types.json import Jsonb
from pydantic import SecretStr
from sqlalchemy import CursorResult, Engine, Executable, TableValuedAlias, bindparam, create_engine, event, func, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeEngine

from app import errors, metrics, settings

AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What SQLAlchemy raises where the server cannot be reached, went away, or has no connection to give."""

DRIVER_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)
"""The same of the driver, which SQLAlchemy puts into words of its own only where it executes something."""

PATIENCE = 6.0
"""Seconds that a transaction may take, waiting for the server included. None of ours comes near."""

CONNECT_TIMEOUT = 3
"""Seconds for each of the hosts that DATABASE_URL names."""

LIBPQ_OPTIONS = (
    "-c statement_timeout=5000 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=4000 -c timezone=UTC"
    # Every join of ours is of a few rows by their key. A burst fills and empties tables in less time than statistics
    # take, and by old ones a scan of the whole table looks cheaper than a thousand look-ups: see app/keys.py.
    " -c enable_hashjoin=off -c enable_mergejoin=off -c random_page_cost=1.1 -c jit=off"
)

PLANNED_ONCE = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off"
"""A plan that is made while the tables are empty must be good for full ones: so it scans none of them. That it reads
none whole by an index either is for the statements to see to, see `keys.looked_up`."""

PLANNED_ANEW = """
    SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true)
"""
"""By `auto` PostgreSQL makes the one plan too, to compare, with scans of whole tables allowed, and keeps it: whoever
has the same statement planned once on this connection later would get it."""

TOO_LONG = "This took too long and was given up; nothing was changed. Ask for less, or try again shortly."

CONNECTING: Mapping[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "application_name": "punctual",
    # a silent link is noticed in seconds, not in the kernel's two hours
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 6000,
}


@unique
class Lock(IntEnum):
    """PostgreSQL's advisory locks, each for one who does a thing at a time in the whole system. Their numbers are ours
    alone by chance: so they stand together, that no two are the same."""

    MIGRATE = 7_403_196
    SUMMARISE = 7_403_197
    SEAL_AUDIT = 7_403_198
    FIND_LATE = 7_403_199
    NOTIFY = 7_403_200
    LEARN_DURATIONS = 7_403_201
    KEEP = 7_403_202


PRIMARY = "read-write"  # of several hosts, only the primary decides
READ_ONLY: Mapping[str, Any] = {"postgresql_readonly": True}

Answer = TypeVar("Answer")

_JSON = json.JSONDecoder()


class Engines(NamedTuple):
    """The ways to use this process's pool of connections."""

    usual: Engine
    planned: Engine
    """For statements that PostgreSQL may plan once for whatever parameters, where this process asks for that."""
    alone: Engine
    """The same, without transactions of its own."""
    reading: Engine
    """With transactions that may change nothing."""


class _Habits:
    """Of this process."""

    plans_once = False


def plan_once() -> None:
    """Has PostgreSQL plan once what it may: for a process that sends the same statements again and again, before it
    connects. See decision 46."""
    _Habits.plans_once = True


@cache
def engines() -> Engines:
    """Made at the first use. Connections must not cross a fork: a child calls `forget` first."""
    options = f"{LIBPQ_OPTIONS} {PLANNED_ONCE}" if _Habits.plans_once else LIBPQ_OPTIONS
    usual = make_engine(settings.load().DATABASE_URL, target_session_attrs=PRIMARY, options=options)
    planned = usual.execution_options(planned=True)
    return Engines(
        usual=usual,
        planned=planned,
        alone=planned.execution_options(isolation_level="AUTOCOMMIT"),
        reading=usual.execution_options(**READ_ONLY),
    )


def make_engine(url: SecretStr, **connecting: str) -> Engine:
    """An engine with a pool and a guard of its own."""
    engine = create_engine(
        url.get_secret_value(),
        pool_size=5,
        max_overflow=10,
        pool_timeout=3,
        pool_use_lifo=True,
        json_deserializer=_read_json,
        hide_parameters=True,  # arguments of tasks may hold secrets, and errors are logged
        connect_args=dict(CONNECTING) | connecting,
    )
    event.listen(engine, "connect", _speak)
    guard = Guard()
    event.listen(engine, "checkout", guard.begin)
    event.listen(engine, "checkin", guard.end)
    event.listen(engine, "invalidate", guard.end)
    return engine


def _read_json(raw: bytes) -> Any:
    """PostgreSQL's JSON is UTF-8 without spaces around it: to look for either takes longer than to read what a task
    has of it."""
    return _JSON.raw_decode(raw.decode())[0]


def _speak(connection: Any, _record: Any) -> None:
    """Has a connection send lists in PostgreSQL's binary form: written as text they cost ten times as much, here and
    there, and every statement of many runs is made of them."""
    connection.adapters.register_dumper(list, ListBinaryDumper)


class Guard:
    """Ends what outlives PATIENCE, from a thread of its own: a link that fell silent tells nobody.

    The server's own timeouts cannot help there, and TCP's do not where something on the way still answers.
    Ending means shutting the socket down under the driver, which then raises as for any lost connection.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[int, tuple[int, float]] = {}
        self.pid: int | None = None

    def begin(self, connection: Any, record: Any, _proxy: Any) -> None:
        """A connection is taken from the pool."""
        if self.pid != os.getpid():  # threads do not survive a fork
            self.lock, self.running, self.pid = threading.Lock(), {}, os.getpid()
            threading.Thread(target=self._watch, name="guard", daemon=True).start()
        with self.lock:
            self.running[id(record)] = (connection.fileno(), time.monotonic() + PATIENCE)

    def end(self, _connection: Any, record: Any, *_: Any) -> None:
        """It is given back, or given up and about to be closed: from here on its number may be another's."""
        with self.lock:
            self.running.pop(id(record), None)

    def _watch(self) -> None:
        while True:
            time.sleep(PATIENCE / 10)
            with self.lock:
                late = [key for key, (_, until) in self.running.items() if until < time.monotonic()]
                for key in late:
                    number, _ = self.running.pop(key)
                    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as theirs:
                        theirs.shutdown(socket.SHUT_RDWR)


def prepare() -> None:
    """Connects once and lets go of it again, for a process that is to fork beside threads of its own.

    What is imported or locked by a thread at a fork stays so in the child, which would wait for it for ever.
    """
    with contextlib.suppress(errors.Unavailable):
        ping()
    engines().usual.dispose()


def forget() -> None:
    """Drops the connections inherited over a fork without closing them: they are the parent's."""
    engines().usual.dispose(close=False)


def transaction(by: object = None, *, planned: bool = False) -> AbstractContextManager[Session]:
    """A session whose work is committed at the end, or not at all. Raises Unavailable where PostgreSQL is away.

    `by` is who acts, see `app.actors`; none where it is Punctual itself. `planned` is for what each run needs: all
    statements within it must be such as one plan is good for, whatever their parameters, as where rows are named by
    their keys.

    A pooled connection that PostgreSQL has closed meanwhile counts as away, once: all of the pool is then made
    anew. To ask each connection first whether it still stands would cost every transaction a round trip.
    """
    if planned:
        return session_on(engines().planned, by)
    return _planned_anew(by) if _Habits.plans_once else session_on(engines().usual, by)


@contextmanager
def _planned_anew(by: object) -> Iterator[Session]:
    """A transaction whose statements are planned for their parameters, on a connection that is not used to it."""
    with session_on(engines().usual, by) as session:
        session.connection().exec_driver_sql(PLANNED_ANEW)
        yield session


def after(session: Session, call: Callable[[], None]) -> None:
    """Has `call` made once the session's work is committed, and never where it is not. It must not raise.

    The process may die in between: what must happen all the same, a chore makes certain.
    """
    session.info.setdefault("after", []).append(call)


@contextmanager
def undone(session: Session) -> Iterator[None]:
    """What is done within it is undone at its end, and what was to follow the commit does not."""
    info = session.info | {"after": [*session.info.get("after", ())]}
    session.info.clear()
    session.info["by"] = info["by"]
    try:
        with session.begin_nested() as savepoint:
            yield
            savepoint.rollback()
    finally:
        session.info.clear()
        session.info.update(info)


def is_alone(session: Session, lock: Lock) -> bool:
    """Whether nobody else does what this lock is for, until this transaction ends."""
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(lock))))


def statement() -> AbstractContextManager[Session]:
    """A session for a single statement, which is a transaction by itself: one round trip instead of three. It must be
    such as one plan is good for, as in a transaction that is `planned`."""
    return session_on(engines().alone)


def transact(step: Callable[[Session], Answer], *, planned: bool = False) -> Answer:
    """Does a step in a transaction of its own."""
    with transaction(planned=planned) as session:
        return step(session)


@contextmanager
def session_on(bound_to: Engine, by: object = None) -> Iterator[Session]:
    """A session on an engine, as `transaction` describes it."""
    try:
        with Session(bound_to, expire_on_commit=False, info={"by": by}) as session, session.begin():
            yield session
    except AWAY as exc:
        raise _unavailable(TOO_LONG if _was_given_up(exc) else None) from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise _unavailable() from exc
        raise
    for call in session.info.get("after", ()):
        call()


def _unavailable(message: str | None = None) -> errors.Unavailable:
    """PostgreSQL is away: counted, and to be raised."""
    metrics.UNAVAILABLE.inc()
    return errors.Unavailable(message)


def _was_given_up(exc: Exception) -> bool:
    """Whether PostgreSQL is there and gave a statement up, as it took longer than ours may."""
    return isinstance(getattr(exc, "orig", None), psycopg.errors.QueryCanceled)


_NOW = select(func.clock_timestamp())


def now(session: Session) -> datetime:
    """The primary's clock: one clock for every stamp and deadline, whatever the machines' own clocks say."""
    moment: datetime = execute(session, _NOW, {}).scalar_one()
    return moment


def rows(name: str, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """Values as a table to join with, `rows("wanted", id=Uuid())`; `arrays` gives them, one array a column."""
    given = [bindparam(f"{name}_{column}", type_=ARRAY(kind)) for column, kind in columns.items()]
    return func.unnest(*given).table_valued(*columns).render_derived(name=name)


def arrays(name: str, **columns: Iterable[Any]) -> dict[str, list[Any]]:
    """The parameters of a statement with such a table."""
    return {f"{name}_{column}": list(values) for column, values in columns.items()}


def execute(session: Session, statement: Executable, parameters: Mapping[str, Any]) -> CursorResult[Any]:
    """Executes a statement that was built once, past the ORM: to build and look through one costs more than its round
    trip does."""
    session.flush()
    return session.connection().execute(statement, parameters)


def execute_anew(session: Session, statement: Executable, parameters: Mapping[str, Any]) -> CursorResult[Any]:
    """The same, planned each time, for tables as large as they are then."""
    driver: Any = session.connection().connection.driver_connection
    usual, driver.prepare_threshold = driver.prepare_threshold, None  # what is not prepared has no plan that stays
    try:
        return execute(session, statement, parameters)
    finally:
        driver.prepare_threshold = usual


def copy(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows, all with the same columns, by COPY: many cost a fifth of what their INSERT does.

    Raises IntegrityError as an INSERT would, and Unavailable where PostgreSQL goes away meanwhile.
    """
    columns = [table.columns[name] for name in rows[0]]
    is_json = [isinstance(column.type, JSONB) for column in columns]
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    )
    session.flush()
    driver: Any = session.connection().connection
    try:
        with driver.cursor() as cursor, cursor.copy(into) as stream:
            for row in rows:
                values = zip(row.values(), is_json, strict=True)
                stream.write_row([Jsonb(value) if json and value is not None else value for value, json in values])
    except psycopg.IntegrityError as exc:
        raise IntegrityError(into.as_string(), None, exc) from exc
    except DRIVER_AWAY as exc:
        driver.invalidate(exc)
        raise _unavailable() from exc


class Direct:
    """A statement that was built once and is a transaction by itself, handed to the driver: for what each run needs. It
    must be such as one plan is good for.

    A session, and what SQLAlchemy does for an execution, cost three times what the driver does: see decision 24.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self.statement = statement

    @cached_property
    def _compiled(self) -> tuple[str, Mapping[str, Any]]:
        """Its text, and the values that are part of it."""
        compiled = self.statement.compile(dialect=engines().usual.dialect)
        return str(compiled), compiled.params

    def __call__(self, **parameters: Any) -> int:
        """Executes it; returns how many rows it changed. Raises Unavailable where PostgreSQL is away."""
        text, fixed = self._compiled
        with _driver() as connection:
            return connection.execute(text, {**fixed, **parameters}, prepare=True).rowcount


@contextmanager
def _driver() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the pool, without transactions."""
    try:
        pooled = engines().usual.raw_connection()
    except (*AWAY, *DRIVER_AWAY) as exc:
        raise _unavailable() from exc
    try:
        connection: psycopg.Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
        connection.autocommit = True
        yield connection
        connection.autocommit = False  # as the next one expects it
    except DRIVER_AWAY as exc:
        pooled.invalidate(exc)
        raise _unavailable() from exc
    except BaseException as exc:
        pooled.invalidate(exc)
        raise
    finally:
        pooled.close()


@contextmanager
def apart(options: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of its own, without transactions, whose statements may take as long as `options` say: nobody ends
    what outlives PATIENCE. For work that takes minutes, in a thread that nobody waits for.

    Raises Unavailable where PostgreSQL is away, or gave a statement up.
    """
    engine = engines().usual
    given, named = engine.dialect.create_connect_args(engine.url)
    connecting = {**named, **CONNECTING} | {"target_session_attrs": PRIMARY, "options": f"{LIBPQ_OPTIONS} {options}"}
    try:
        with psycopg.connect(*given, **connecting, autocommit=True) as connection:
            yield connection
    except DRIVER_AWAY as exc:
        raise _unavailable() from exc


def ping() -> None:
    """Raises Unavailable where the primary does not answer."""
    with statement() as session:
        now(session)
