"""Chores: small repeated repairs, one per concern. Every beat runs them all, leader or not.

Each is `step() -> Done`: it does one bounded batch, and says how much that was and whether there may be more. `SKIP
LOCKED` keeps the beats out of each other's way. A chore that fails is logged and tried again at its next turn.
"""

import logging
import math
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import (
    answers,
    attempts,
    audit,
    broker,
    canary,
    clock,
    db,
    dispatch,
    durations,
    errors,
    external,
    incidents,
    metrics,
    notifications,
    outbox,
    publishing,
    pulse,
    recoveries,
    retention,
    summaries,
)
from app.messages import Message

BESIDE = 100
"""How many the audit path fires a second where its beat rings too."""

GAP = 3.0
"""Seconds without word from PostgreSQL in which a worker may have missed heartbeats too."""

log = logging.getLogger(__name__)


class Done(NamedTuple):
    """What a turn of a chore did."""

    work: int = 0
    """How many things it repaired or made."""
    more: bool = False
    """Whether it is to have another turn at once."""


@dataclass(kw_only=True)
class Chore:
    """A step, and how often it is due."""

    name: str
    every: float
    step: Callable[[], Done]
    share: float = 1.0
    """Of its time that it works at most while there is more to do. What tells of runs that are late must not make the
    others later."""
    next_at: float = 0.0
    failing: bool = False


@dataclass(kw_only=True)
class Contact:
    """Since when this beat has reached PostgreSQL without a gap.

    After an outage every heartbeat is old: nothing may be called lost before its worker had time to renew it.
    """

    since: float = field(default_factory=clock.monotonic)
    last: float = field(default_factory=clock.monotonic)

    def check(self) -> timedelta:
        """How long the contact has held; it is asked each second, and breaks where it was not for a while."""
        asked = clock.monotonic()
        try:
            db.ping()
        except errors.Unavailable:
            self.since = math.inf
            raise
        now = clock.monotonic()
        if self.since == math.inf or asked - self.last > GAP or now - asked > GAP:
            self.since = now
        self.last = now
        return timedelta(seconds=now - self.since)


class Chores:
    """All chores, run one after the other by a thread of their own, with a publisher of their own."""

    def __init__(
        self,
        publisher: publishing.Publisher,
        announce: Callable[[], Done],
        held: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        self.publisher = publisher
        self.held = held
        """The buckets that this beat rings itself."""
        self.contact = Contact()
        self.learnt = durations.BEGINNING
        self.stopping = threading.Event()
        self.incident: UUID | None = None
        """Up to which the open ones were looked at."""
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
            Chore(name="find_late", every=2, step=find_late, share=0.1),
            Chore(name="close_incidents", every=2, step=self.close_incidents, share=0.1),
            Chore(name="notify", every=1, step=self.notify, share=0.1),
            Chore(name="forget_incidents", every=3600, step=forget_incidents),
            Chore(name="seal_audit", every=1, step=seal_audit),
            Chore(name="summarise", every=5, step=summarise),
            Chore(name="learn_durations", every=1, step=self.learn_durations),
            Chore(name="forget_summaries", every=3600, step=forget_summaries),
            Chore(name="announce", every=1, step=announce),
        ]

    def run(self) -> None:
        """Runs due chores until it is stopped."""
        while not self.stopping.is_set():
            pulse.mark("chores")
            for chore in self.all:
                if clock.monotonic() >= chore.next_at and not self.stopping.is_set():
                    self.turn(chore)
            self.stopping.wait(max(0.0, min(chore.next_at for chore in self.all) - clock.monotonic()))
        self.publisher.close()

    def turn(self, chore: Chore) -> None:
        """One turn of a chore: soon again where there may be more, else after its pause."""
        done, began = Done(), clock.monotonic()
        pulse.mark(chore.name)
        try:
            with metrics.turn(chore.name):
                done = chore.step()
            if chore.failing:
                log.info("chore %s works again", chore.name)
            chore.failing = False
        except errors.Unavailable:
            _complain(chore, "PostgreSQL is away")
        except Exception:
            log.exception("chore %s failed, it is tried again in %s s", chore.name, chore.every)
        metrics.CHORE_WORK.labels(chore.name).inc(done.work)
        now = clock.monotonic()
        chore.next_at = now + ((now - began) * (1 / chore.share - 1) if done.more else chore.every)

    def fire_overdue(self) -> Done:
        # Where this beat rings, most of what is overdue is what it has not come to yet. Two threads are no quicker at
        # that than one, and each entry would be rung once more in vain: so this one takes few.
        is_ringing = bool(self.held())
        limit = BESIDE if is_ringing else dispatch.BATCH
        fired = dispatch.fire_overdue(self.publisher.publish, dispatch.OVERDUE, limit)
        if fired.next_run_at:
            log.warning("the audit path fired %d tasks that no beat had rung", len(fired.next_run_at))
        done = _batch(len(fired.next_run_at), limit)
        return done._replace(more=False) if is_ringing else done

    def publish_pending(self) -> Done:
        return self._publish(outbox.take_pending)

    def publish_retries(self) -> Done:
        return self._publish(outbox.take_retries)

    def publish_held(self) -> Done:
        return self._publish(outbox.take_held)

    def rescue_lost(self) -> Done:
        if self.contact.check() <= attempts.LOST_AFTER + timedelta(seconds=2):
            return Done()
        with db.transaction() as session:
            again, dead = attempts.rescue_lost(session)
        if again or dead:
            log.warning("runs lost their worker: %d are tried again, %d have failed", again, dead)
            self.publish_retries()  # they have waited for seconds already
        return _batch(again + dead, attempts.BATCH)

    def end_unanswered(self) -> Done:
        """Attempts that another app was sent and never answered for. Answers that waited for PostgreSQL go first."""
        if self.contact.check() <= external.ANSWER_GRACE:
            return Done()
        with db.transaction() as session:
            again, dead = external.give_up(session)
        if again or dead:
            log.warning("other apps gave no answer: %d runs are tried again, %d have failed", again, dead)
        return _batch(again + dead, external.BATCH)

    def resend_vanished(self) -> Done:
        """Where more messages stand queued than the broker holds, a queue was purged or lost.

        The messages that it holds are those of the newest runs, so the oldest ones are without. Among them are
        the few that a busy worker has fetched ahead: they are sent twice, and the second is dropped.
        """
        sent, more = 0, False
        with db.transaction() as session:
            queued = outbox.count_queued(session)
        if queued and not self.publisher.reaches():
            return Done()
        for queue, count in queued.items():
            held = broker.depth(queue) or 0
            if count > held:
                with db.transaction() as session:
                    vanished = outbox.take_vanished(session, queue, held)
                log.info("queue %s lacks %d messages: %d runs are sent again", queue, count - held, len(vanished))
                again = dispatch.send(self.publisher.publish, vanished)
                sent, more = sent + again, more or again >= outbox.VANISHED
        return Done(sent, more)

    def close_incidents(self) -> Done:
        """Closes incidents whose tasks are well again. In a mass of them the next turn goes on at once, while there is
        something to close."""
        with db.transaction() as session:
            self.incident, closed = recoveries.close(session, self.incident)
        return Done(closed, more=closed > 0 and self.incident is not None)

    def notify(self) -> Done:
        """Tells of incidents that opened or are over."""
        with db.transaction() as session:
            notices = notifications.tell(session, db.now(session))
        dispatch.send(self.publisher.publish, notices)
        return Done(len(notices))

    def learn_durations(self) -> Done:
        """How long the runs of some tasks take; the next turn goes on behind them."""
        with db.transaction() as session:
            count, self.learnt = durations.learn(session, db.now(session), self.learnt)
        return Done(count)

    def _publish(self, take: Callable[[Session], list[Message]]) -> Done:
        if not self.publisher.reaches():
            return Done()
        with db.transaction() as session:
            batch = take(session)
        # where the broker takes nothing there is no use in another batch at once
        return _batch(dispatch.send(self.publisher.publish, batch), outbox.BATCH)


def make_partitions() -> Done:
    """Makes room for the months ahead. A month that has rows in the default partition already stays there."""
    with db.transaction() as session:
        months = retention.coming_months(db.now(session))
    made = 0
    for month in months:
        for table in ("runs", "attempts"):
            try:
                made += _make_partition(table, month)
            except IntegrityError:
                log.warning("no partition of %s for %s: its rows lie in the default one already", table, month)
    return Done(made)


def forget_answers() -> Done:
    """Deletes the answers to old requests."""
    with db.transaction() as session:
        return _batch(answers.forget(session, db.now(session)), answers.BATCH)


def keep_canaries() -> Done:
    """Has a canary on each queue."""
    with db.transaction() as session:
        return Done(canary.keep(session, db.now(session)))


def find_late() -> Done:
    """Reports tasks whose runs are late."""
    with db.transaction() as session:
        return Done(*incidents.find_late(session, db.now(session)))


def forget_incidents() -> Done:
    """Deletes incidents that were over long ago."""
    with db.transaction() as session:
        return _batch(incidents.forget(session, db.now(session)), incidents.FORGOTTEN)


def seal_audit() -> Done:
    """Links new entries of the audit log into its chain."""
    return _batch(db.transact(audit.seal), audit.BATCH)


def summarise() -> Done:
    """Makes the summaries anew that may have changed."""
    with db.transaction() as session:
        return Done(*summaries.summarise(session, db.now(session)))


def forget_summaries() -> Done:
    """Deletes old summaries."""
    with db.transaction() as session:
        return _batch(summaries.forget(session, db.now(session)), summaries.FORGOTTEN)


def _batch(work: int, limit: int) -> Done:
    """What was done with a batch of at most so many: one that was full may not have been all."""
    return Done(work, more=work >= limit)


def _make_partition(table: str, month: date) -> bool:
    """Has PostgreSQL make it, by a function of the schema's owner: a beat may make no tables."""
    with db.transaction() as session:
        made = session.scalar(select(func.make_partition(table, month)))
    if made:
        log.info("made partition %s_%s", table, f"{month:%Y_%m}")
    return bool(made)


def _complain(chore: Chore, why: str) -> None:
    """Says once that a chore cannot do its work."""
    if not chore.failing:
        log.warning("chore %s waits: %s", chore.name, why)
    chore.failing = True
