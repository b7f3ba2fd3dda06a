"""Reading where nothing is decided: lists and statistics. From the replica that DATABASE_READ_URL names while it
follows closely, else from the primary; either way nothing can be changed.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from sqlalchemy import ColumnElement, Engine, func, literal_column, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app import db, errors, settings

MAX_LAG = 10.0
"""Seconds that what is read may be old."""

EVERY = 1.0
"""Seconds between two looks at how far it is."""

OPTIONS = f"{db.LIBPQ_OPTIONS} -c default_transaction_read_only=on"

log = logging.getLogger(__name__)


@contextmanager
def reading(by: object = None) -> Iterator[Session]:
    """A session that can change nothing, and may see what stood there up to MAX_LAG ago. Raises Unavailable.

    `by` is who acts, see `app.actors`.
    """
    replica = follower()
    if replica is None or not replica.is_close():
        with on_primary(by) as session:
            yield session
        return
    try:
        with db.session_on(replica.engine, by) as session:
            yield session
    except errors.Unavailable:
        replica.distrust("it did not answer")  # a repeat is answered by the primary
        raise


@contextmanager
def on_primary(by: object = None) -> Iterator[Session]:
    """As `reading`, of what stands there now."""
    with db.session_on(db.engines().reading, by) as session:
        yield session


@cache
def follower() -> "Follower | None":
    """This process's look at the replica; None where there is none."""
    url = settings.load().DATABASE_READ_URL
    if url is None:
        return None
    made = Follower(db.make_engine(url, target_session_attrs="any", options=OPTIONS))
    made.start()
    return made


class Follower(threading.Thread):
    """Looks each second how far the replica is, so that no request waits for that.

    It compares places in the primary's log, not clocks: those of two machines differ, and the time of the last change
    tells nothing of a primary where nothing changes. Whoever has replayed the place where the primary stood at some
    moment, knows all that was committed until then.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="replica", daemon=True)
        self.engine = engine.execution_options(**db.READ_ONLY)
        self.stopping = threading.Event()
        self.places: deque[tuple[int, float]] = deque(maxlen=600)
        """Where the primary stood, and when, the oldest first: those that the replica has not reached."""
        self.reached = -math.inf
        """The latest moment of which it is known that the replica has what stood there then."""
        self.trusted: bool | None = None
        """Whether it follows, as far as was said; None: nothing yet."""

    def run(self) -> None:
        """Looks until it is stopped."""
        while not self.stopping.is_set():
            self.look()
            self.stopping.wait(EVERY)

    def is_close(self) -> bool:
        """Whether it follows closely. Where nobody looks any more it counts as far away."""
        return time.monotonic() - self.reached <= MAX_LAG

    def look(self) -> None:
        """Looks once."""
        try:
            with db.statement() as session:
                now = time.monotonic()
                self.places.append((int(session.scalars(_PRIMARY).one()), now))
            with db.session_on(self.engine) as session:
                is_replica, replayed = session.execute(_REPLICA).one()
        except errors.Unavailable:
            self.distrust("it, or the primary, does not answer")
        except DBAPIError as exc:
            self.distrust(f"it cannot be told how far it is: {exc.orig}")
        else:
            if is_replica and replayed is not None:
                self._note(int(replayed))
            else:
                self.distrust("it is no replica")

    def _note(self, replayed: int) -> None:
        """Notes how far it is."""
        while self.places and self.places[0][0] <= replayed:
            _, self.reached = self.places.popleft()
        if self.places and time.monotonic() - self.places[0][1] > MAX_LAG:
            self.distrust(f"it lags by more than {MAX_LAG:.0f} s")
        elif self.is_close() and not self.trusted:
            log.info("the replica follows: lists and statistics are read from it")
            self.trusted = True

    def distrust(self, why: str) -> None:
        """Reads from the primary until the next look that goes well. Says so once."""
        self.reached = -math.inf
        if self.trusted is not False:
            log.warning("lists and statistics are read from the primary, not from its replica: %s", why)
            self.trusted = False


_START: ColumnElement[str] = literal_column("'0/0'::pg_lsn")
_PRIMARY = select(func.pg_wal_lsn_diff(func.pg_current_wal_lsn(), _START))
_REPLICA = select(func.pg_is_in_recovery(), func.pg_wal_lsn_diff(func.pg_last_wal_replay_lsn(), _START))
