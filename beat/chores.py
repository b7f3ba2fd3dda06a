"""Chores: small repeated repairs, one per concern. Every beat runs them all, leader or not.

Each is `step() -> bool`: it does one bounded batch and says whether there may be more. `SKIP LOCKED` keeps
the beats out of each other's way. A chore that fails is logged and tried again at its next turn.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import (
    answers,
    attempts,
    audit,
    broker,
    canary,
    db,
    dispatch,
    errors,
    external,
    outbox,
    publishing,
    pulse,
    summaries,
)
from app.messages import Message

OVERDUE = timedelta(seconds=3)
"""From here on the audit path fires a task: its entry is missing, or nobody rings its bucket."""

MONTHS_AHEAD = 3

GAP = 3.0
"""Seconds without word from PostgreSQL in which a worker may have missed heartbeats too."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Chore:
    """A step, and how often it is due."""

    name: str
    every: float
    step: Callable[[], bool]
    next_at: float = 0.0
    failing: bool = False


@dataclass(kw_only=True)
class Contact:
    """Since when this beat has reached PostgreSQL without a gap.

    After an outage every heartbeat is old: nothing may be called lost before its worker had time to renew it.
    """

    since: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def check(self) -> timedelta:
        """How long the contact has held; it is asked each second, and breaks where it was not for a while."""
        asked = time.monotonic()
        try:
            db.ping()
        except errors.Unavailable:
            self.since = math.inf
            raise
        now = time.monotonic()
        if self.since == math.inf or asked - self.last > GAP or now - asked > GAP:
            self.since = now
        self.last = now
        return timedelta(seconds=now - self.since)


class Chores:
    """All chores, run one after the other by a thread of their own, with a publisher of their own."""

    def __init__(self, publisher: publishing.Publisher, announce: Callable[[], bool]) -> None:
        self.publisher = publisher
        self.contact = Contact()
        self.stopping = threading.Event()
        self.all = [
            Chore(name="make_partitions", every=3600, step=make_partitions),
            Chore(name="fire_overdue", every=1, step=self.fire_overdue),
            Chore(name="publish_pending", every=1, step=self.publish_pending),
            Chore(name="publish_retries", every=0.5, step=self.publish_retries),
            Chore(name="publish_held", every=0.5, step=self.publish_held),
            Chore(name="rescue_lost", every=0.5, step=self.rescue_lost),
            Chore(name="resend_vanished", every=5, step=self.resend_vanished),
            Chore(name="end_unanswered", every=1, step=self.end_unanswered),
            Chore(name="forget_answers", every=3600, step=forget_answers),
            Chore(name="keep_canaries", every=5, step=keep_canaries),
            Chore(name="seal_audit", every=1, step=seal_audit),
            Chore(name="summarise", every=5, step=summarise),
            Chore(name="forget_summaries", every=3600, step=forget_summaries),
            Chore(name="announce", every=1, step=announce),
        ]

    def run(self) -> None:
        """Runs due chores until it is stopped."""
        while not self.stopping.is_set():
            pulse.mark("chores")
            for chore in self.all:
                if time.monotonic() >= chore.next_at and not self.stopping.is_set():
                    self.turn(chore)
            self.stopping.wait(max(0.0, min(chore.next_at for chore in self.all) - time.monotonic()))
        self.publisher.close()

    def turn(self, chore: Chore) -> None:
        """One turn of a chore: at once again where there may be more, else after its pause."""
        more = False
        pulse.mark(chore.name)
        try:
            more = chore.step()
            if chore.failing:
                log.info("chore %s works again", chore.name)
            chore.failing = False
        except errors.Unavailable:
            _complain(chore, "PostgreSQL is away")
        except Exception:
            log.exception("chore %s failed, it is tried again in %s s", chore.name, chore.every)
        chore.next_at = time.monotonic() + (0 if more else chore.every)

    def fire_overdue(self) -> bool:
        fired = dispatch.fire_overdue(self.publisher.publish, OVERDUE)
        if fired.next_run_at:
            log.warning("the audit path fired %d tasks that no beat had rung", len(fired.next_run_at))
        return len(fired.next_run_at) >= dispatch.BATCH

    def publish_pending(self) -> bool:
        return self._publish(outbox.take_pending)

    def publish_retries(self) -> bool:
        return self._publish(outbox.take_retries)

    def publish_held(self) -> bool:
        return self._publish(outbox.take_held)

    def rescue_lost(self) -> bool:
        if self.contact.check() <= attempts.LOST_AFTER + timedelta(seconds=2):
            return False
        with db.transaction() as session:
            again, dead = attempts.rescue_lost(session)
        if again or dead:
            log.warning("runs lost their worker: %d are tried again, %d have failed", again, dead)
            self.publish_retries()  # they have waited for seconds already
        return again + dead >= attempts.BATCH

    def end_unanswered(self) -> bool:
        """Attempts that another app was sent and never answered for. Answers that waited for PostgreSQL go first."""
        if self.contact.check() <= external.ANSWER_GRACE:
            return False
        with db.transaction() as session:
            again, dead = external.give_up(session)
        if again or dead:
            log.warning("other apps gave no answer: %d runs are tried again, %d have failed", again, dead)
        return again + dead >= external.BATCH

    def resend_vanished(self) -> bool:
        """Where more messages stand queued than the broker holds, a queue was purged or lost.

        The messages that it holds are those of the newest runs, so the oldest ones are without. Among them are
        the few that a busy worker has fetched ahead: they are sent twice, and the second is dropped.
        """
        more = False
        with db.transaction() as session:
            queued = outbox.count_queued(session)
        for queue, count in queued.items():
            held = broker.depth(queue) or 0
            if count > held:
                with db.transaction() as session:
                    vanished = outbox.take_vanished(session, queue, held)
                log.info("queue %s lacks %d messages: %d runs are sent again", queue, count - held, len(vanished))
                more |= dispatch.send(self.publisher.publish, vanished) >= outbox.BATCH
        return more

    def _publish(self, take: Callable[[Session], list[Message]]) -> bool:
        with db.transaction() as session:
            batch = take(session)
        # where the broker takes nothing there is no use in another batch at once
        return dispatch.send(self.publisher.publish, batch) >= outbox.BATCH


def make_partitions() -> bool:
    """Makes room for the months ahead. A month that has rows in the default partition already stays there."""
    with db.transaction() as session:
        first = db.now(session).date().replace(day=1)
    for _ in range(MONTHS_AHEAD + 1):
        for table in ("runs", "attempts"):
            try:
                _make_partition(table, first)
            except IntegrityError:
                log.warning("no partition of %s for %s: its rows lie in the default one already", table, first)
        first = (first + timedelta(days=32)).replace(day=1)
    return False


def forget_answers() -> bool:
    """Deletes the answers to old requests."""
    with db.transaction() as session:
        return answers.forget(session, db.now(session)) >= answers.BATCH


def keep_canaries() -> bool:
    """Has a canary on each queue."""
    with db.transaction() as session:
        canary.keep(session, db.now(session))
    return False


def seal_audit() -> bool:
    """Links new entries of the audit log into its chain."""
    return db.transact(audit.seal) >= audit.BATCH


def summarise() -> bool:
    """Makes the summaries anew that may have changed."""
    with db.transaction() as session:
        return summaries.summarise(session, db.now(session))


def forget_summaries() -> bool:
    """Deletes old summaries."""
    with db.transaction() as session:
        return summaries.forget(session, db.now(session)) >= summaries.FORGOTTEN


def _make_partition(table: str, month: date) -> None:
    """Has PostgreSQL make it, by a function of the schema's owner: a beat may make no tables."""
    with db.transaction() as session:
        made = session.scalar(select(func.make_partition(table, month)))
    if made:
        log.info("made partition %s_%s", table, f"{month:%Y_%m}")


def _complain(chore: Chore, why: str) -> None:
    """Says once that a chore cannot do its work."""
    if not chore.failing:
        log.warning("chore %s waits: %s", chore.name, why)
    chore.failing = True
