"""The keeper: lets go of what is old, in a thread of its own. Archiving a month takes minutes, in which no chore of the
beat could have its turn, so it is none.

One beat's does so at a time: it holds a lock of PostgreSQL's while it is connected. What one that died has left half
done, the next one finishes: a month that is out of use is archived, from the beginning, and dropped.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psycopg

from app import archive, db, errors, metrics, retention, settings

EVERY = 60.0
"""Seconds between two turns."""

PRUNE_EVERY = 3600.0
"""Seconds between two looks for what goes one by one: each looks at every task."""

OPTIONS = "-c statement_timeout=600000"
"""Counting a month and dropping it may take long, and hold up nobody."""

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The beat stops, in the midst of it."""


class Keeper(threading.Thread):
    """Its turns are bounded by nothing, and it rests as long as it has worked: it takes half a processor at most."""

    def __init__(self) -> None:
        super().__init__(name="keeper", daemon=True)
        self.stopping = threading.Event()
        self.prune_at = 0.0
        self.complained = ""

    def run(self) -> None:
        """Takes its turns until it is stopped."""
        while not self.stopping.wait(EVERY):
            try:
                with metrics.turn("keeper"):
                    self.turn()
                self.complained = ""
            except Stopped:
                return
            except errors.Unavailable:
                self._complain("PostgreSQL is away")
            except OSError as exc:
                self._complain(f"the archive cannot be written: {exc}")
            except Exception:
                log.exception("the keeper failed, it tries again in %.0f s", EVERY)

    def turn(self) -> bool:
        """Lets go of what is old. False: another beat is at it."""
        with db.apart(OPTIONS) as connection:
            [alone] = connection.execute("SELECT pg_try_advisory_lock(%s)", [db.Lock.KEEP]).fetchone() or [False]
            if alone:
                self._months(connection)
                if time.monotonic() >= self.prune_at:
                    self.prune()
                    self.prune_at = time.monotonic() + PRUNE_EVERY
        return bool(alone)

    def prune(self) -> None:
        """What goes one by one, in small batches."""
        after: Any = retention.FIRST
        while after is not None:
            after = self._batch(lambda session, now, after=after: retention.prune_tasks(session, now, after)).after
        for step in (retention.prune_old, retention.forget_tasks):
            while self._batch(step):
                pass

    def _batch(self, step: Callable[..., Any]) -> Any:
        began = time.monotonic()
        with db.transaction() as session:
            done = step(session, db.now(session))
        self._rest(time.monotonic() - began)
        return done

    def _months(self, connection: psycopg.Connection[Any]) -> None:
        folder = settings.load().PUNCTUAL_ARCHIVE_PATH
        with db.transaction() as session:
            now = db.now(session)
            old, detached = retention.old_months(session, now), retention.detached_months(session, now)
        if folder is not None and (old or detached):
            archive.check(folder)  # before anything is taken out of sight
        for month in (*detached, *old):
            if self._detach(month):
                self._let_go(connection, month, folder)

    def _detach(self, month: date) -> bool:
        """Takes a month out of use. False: that must wait for another turn."""
        try:
            with db.transaction() as session:
                done = retention.detach(session, month)
        except errors.Unavailable as exc:
            if not isinstance(getattr(exc.__cause__, "orig", None), psycopg.errors.LockNotAvailable):
                raise
            log.info("the runs of %s stay for another %.0f s: the table was in use", f"{month:%Y-%m}", EVERY)
            return False
        if not done:
            log.info("the runs of %s stay: one of them has not ended", f"{month:%Y-%m}")
        return done

    def _let_go(self, connection: psycopg.Connection[Any], month: date, folder: Path | None) -> None:
        """Archives a month that is out of use, where that is wanted, and drops it."""
        archived: dict[str, int | None] = {"runs": None, "attempts": None}
        if folder is not None:
            for table in archived:
                name = f"{table}_{month:%Y_%m}"
                if connection.execute("SELECT to_regclass(%s)", [name]).fetchone() != (None,):
                    file, rows = archive.write(connection, name, folder, self._rest)
                    archived[table] = rows
                    log.info("wrote %d rows to %s", rows, file)
        connection.execute("SELECT drop_month(%s, %s, %s)", [month, *archived.values()])
        log.info("the runs of %s are gone", f"{month:%Y-%m}")

    def _rest(self, worked: float) -> None:
        if self.stopping.wait(worked):
            raise Stopped

    def _complain(self, why: str) -> None:
        """Says it once, until it goes well or is another thing."""
        if why != self.complained:
            log.warning("the keeper waits: %s", why)
        self.complained = why
