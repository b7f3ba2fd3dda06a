"""RedBeat, subclassed: rings the due entries of the buckets it holds, and mirrors what changed.

Stock RedBeat sends each entry itself, advances it before it is sent, and lives or dies with one lock. Here an
entry that rings only names a task: `dispatch.fire` decides in PostgreSQL what is due, and the entry is moved
on afterwards. A tick never blocks for long and never raises because a store is away.
"""

import contextlib
import logging
import math
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import redis
from redbeat import RedBeatScheduler
from redbeat.schedulers import REDBEAT_REDIS_KEY
from redis.backoff import NoBackoff

from app import (
    bell,
    clock,
    db,
    dispatch,
    errors,
    exporter,
    metrics,
    outbox,
    packs,
    publishing,
    pulse,
    settings,
    traces,
)
from app.messages import Parcel
from beat.chores import Chores
from beat.entries import Entries, Entry
from beat.keeper import Keeper
from beat.leases import Leases
from beat.mirror import Mirror
from beat.node import Node
from beat.watchdog import SigningRetry, Watchdog, sign_statements

MAX_TICK = 0.5
"""Seconds between ticks at most."""

KEEP_EVERY = 0.1
"""Seconds for which a beat that rings one slot after another leaves leases, mirror and marks alone: they cost more than
a firing does. A hint ends it at once."""

REST = 0.05
"""Seconds that a beat rests at most after it fired a few: half as long as that took, so that what falls due meanwhile
is fired together. One that falls behind becomes quicker so, and leaves the workers their part of the machine."""

SHORTLY = timedelta(milliseconds=20)

RING_FOR = 1.0
"""Seconds after which a beat looks up from a burst."""

MARK_AFTER = 1.2
"""Seconds after which what was sent is marked: most of it has been claimed by then and needs no mark any more."""

MARK_EVERY = 0.5
"""Seconds between two markings, so that they are few. Both together, and a turn and a firing, in which nothing is
marked, are mostly below `outbox.SENDING`, when others would send it again, which costs a message and nothing else."""

BATCH = 1000

FIRING, LONGEST = 0.5, 2.0
"""Seconds that a firing of more than BATCH takes at most, and any, about. Of a burst as many are fired together as that
allows: the more they are, the less each costs, and much of what a firing takes is the same for few and for many. It
must be over before its lease is, and sooner than a transaction is given up."""

FEWEST, MOST = 250, 4000
"""How many are fired together, as the time that it takes has it; at first BATCH."""

POSTGRESQL = "PostgreSQL"

log = logging.getLogger(__name__)


class PunctualScheduler(RedBeatScheduler):  # type: ignore[misc]
    """One beat process. Celery's service calls `tick` until it is stopped, then `close`."""

    def __init__(self, app: Any, lazy: bool = False, **kwargs: Any) -> None:  # noqa: FBT001, FBT002 - Celery's own
        # RedBeat's get_redis finds this client and makes none of its own: behind Sentinels it would make one per call
        client = bell.connect(retry=SigningRetry(NoBackoff(), retries=1))
        setattr(app, REDBEAT_REDIS_KEY, client)
        super().__init__(app, lazy=lazy, **kwargs)
        self.lock_key = None  # RedBeat's one lock per process; ours are one per bucket
        self.equip(client, Leases(client, settings.load().PUNCTUAL_BUCKETS), publishing.Publisher())
        self.watchdog = Watchdog(self.node)
        if not lazy:
            db.plan_once()
            self.chores = Chores(publishing.Publisher(), self.node.announce, self.leases.held)
            self.node.publishers = [self.publisher, self.chores.publisher]
            self.chore_thread = threading.Thread(target=self.chores.run, name="chores", daemon=True)
            sign_statements(db.engines().usual)  # before a second thread could make engines of its own at the same time
            self.chore_thread.start()
            self.keeper = Keeper()
            self.keeper.start()
            for thread in (threading.current_thread(), self.chore_thread):
                self.watchdog.watch(thread)
            self.watchdog.start()
            exporter.serve("beat", self.node.gauges)
            traces.start("beat")

    def equip(self, client: Any, leases: Leases, publisher: Any) -> None:
        """What a turn needs, and no more: neither Celery's part nor threads. The simulator begins here."""
        self.entries = Entries(client)
        self.leases = leases
        self.publisher = publisher
        self.mirror = Mirror(self.entries, leases)
        self.hints = client.pubsub(ignore_subscribe_messages=True)
        self.away: set[str] = set()
        self.sent: list[tuple[float, Sequence[Parcel]]] = []
        """What was sent and not marked yet, and when its firing began, by `clock.monotonic`."""
        self.mark_at = 0.0
        """When to look at that next."""
        self.batch = BATCH
        """How many are fired together."""
        self.kept_until = 0.0
        self.node = Node(leases, settings.load().PUNCTUAL_HEALTH_PATH)

    def setup_schedule(self) -> None:
        """Nothing: what RedBeat takes from the configuration, Punctual takes from PostgreSQL."""

    def tick(self, **_: Any) -> float:
        """One turn. Returns 0, as the waiting is done here; raises nothing, as the next turn may go well."""
        until = clock.monotonic() + MAX_TICK
        pulse.mark("tick")
        try:
            self._turn(until)
        except redis.RedisError as exc:
            # the audit path goes on; what is due is fired by it until Redis is back
            self.leases.drop()
            self._say_away("Redis", exc)
        except errors.Unavailable as exc:
            self._say_away(POSTGRESQL, exc)
        except Exception:
            log.exception("a tick failed, the next one follows")
        else:
            return 0.0
        finally:
            self.node.ticked()
        clock.sleep(max(0.0, until - clock.monotonic()))
        return 0.0

    def _turn(self, until: float) -> None:
        """Keeps what is held in order, rings, then waits for the next slot or a hint."""
        with metrics.TICK.time():
            if clock.monotonic() >= self.kept_until:
                self._keep()
            next_at = self._ring()
        self._say_back()
        if not self.kept_until:
            return
        if next_at is not None:
            until = min(until, clock.monotonic() + (next_at - clock.now()).total_seconds())
        if self._listen(until):
            self.kept_until = 0.0

    def _keep(self) -> None:
        """Renews, mirrors, and marks what was sent a while ago. Where there is more to mirror the next turn goes on
        with it at once. A beat that does not reach PostgreSQL lets its leases run out: another one may reach it."""
        if POSTGRESQL in self.away:
            db.ping()
        self.leases.renew()
        more = self.mirror.turn()
        self._mark_in_time()
        self.kept_until = 0.0 if more else clock.monotonic() + KEEP_EVERY

    def _mark_in_time(self) -> None:
        now = clock.monotonic()
        if now >= self.mark_at:
            self._mark(now - MARK_AFTER)
            self.mark_at = now + MARK_EVERY

    def _mark(self, until: float = math.inf) -> None:
        """Marks what was sent until then and still waits."""
        old = [parcels for at, parcels in self.sent if at <= until]
        dispatch.mark_unclaimed([parcel for parcels in old for parcel in parcels])
        del self.sent[: len(old)]  # not before: they are to be marked though PostgreSQL is away just now

    def close(self) -> None:
        """Stops: gives every lease back at once, so that the others need not wait for it to run out."""
        self.watchdog.stopping.set()  # from here on the supervisor's patience counts
        self.watchdog.join(timeout=1)
        self.chores.stopping.set()
        self.keeper.stopping.set()
        with contextlib.suppress(errors.Unavailable):
            self._mark()
        self.leases.release()
        self.publisher.close()
        self.chore_thread.join(timeout=5)
        traces.stop()
        with contextlib.suppress(errors.Unavailable):
            self.node.leave()
        super().close()

    @property
    def info(self) -> str:
        return f"       . buckets -> {self.leases.buckets}"

    def _ring(self) -> datetime | None:
        """Fires what is due, batch by batch, while the lease holds. Returns when the next entry is due."""
        until = clock.monotonic() + RING_FOR
        while True:
            held = self.leases.held()
            due = self.entries.due(held, clock.now(), max(1, self.batch // max(1, len(held))))
            self._set_aside(due.unreadable)
            if not due.tasks:
                self.batch = BATCH  # the next burst may be of others, each of which takes longer
                return due.next_at
            began = clock.monotonic()
            fired = self._fire(due.tasks)
            self._move(due.tasks, fired)
            self._mark_in_time()
            if _must_wait(due.tasks, fired):
                return clock.now() + SHORTLY
            if len(due.tasks) < packs.FEW:
                return clock.now() + timedelta(seconds=min((clock.monotonic() - began) / 2, REST))
            if clock.monotonic() > until:
                return clock.now()  # a long burst must not outlive leases, nor hold up a change

    def _fire(self, task_ids: Collection[UUID]) -> dispatch.Fired:
        """Fires them, and learns from it how many to fire together."""
        began = clock.monotonic()
        before, self.batch = self.batch, FEWEST  # which stays where it fails: it took too long perhaps
        fired = dispatch.fire(self.publisher.publish, task_ids)
        self.batch = fitting(before, len(task_ids), clock.monotonic() - began)
        if fired.sent:
            self.sent.append((began, fired.sent))
        return fired

    def _set_aside(self, unreadable: dict[str, int]) -> None:
        for member, bucket in unreadable.items():
            log.error("entry %r of bucket %d cannot be read, it is set aside", member, bucket)
            self.entries.discard(bucket, member)
            self.node.set_aside(member, bucket)

    def _move(self, buckets: dict[UUID, int], fired: dispatch.Fired) -> None:
        """Moves the entries on to what PostgreSQL says is next."""
        targets = {run.task.id: run.task.target for run in fired.runs}
        moved = defaultdict(list)
        for task_id, slot in fired.next_run_at.items():
            moved[buckets[task_id]].append(Entry(task_id=task_id, target=targets.get(task_id, ""), slot=slot))
        self.mirror.write(moved)

    def _listen(self, until: float) -> bool:
        """Waits until then, or until the bell rings for a held bucket, which it says."""
        if not self.hints.subscribed:
            self.hints.subscribe(bell.CHANNEL)
        while (left := until - clock.monotonic()) > 0:
            heard = self.hints.get_message(timeout=left)
            hint = bell.Hint.decode(heard["data"]) if heard else None
            if hint is None or hint.bucket not in self.leases.held():
                continue
            if hint.run is None:
                return True
            self._send_run(hint.run)
        return False

    def _send_run(self, run_id: UUID) -> None:
        """Sends a run that was recorded elsewhere; where it fails, the chore publish_pending does it."""
        with contextlib.suppress(errors.Unavailable):
            with db.transaction(planned=True) as session:
                batch = outbox.take_run(session, run_id)
            dispatch.send(self.publisher.publish, batch)

    def _say_away(self, store: str, exc: Exception) -> None:
        """Says once that a store is away."""
        if store not in self.away:
            log.warning("%s is away, this beat waits for it: %s", store, exc)
        self.away.add(store)

    def _say_back(self) -> None:
        if self.away:
            log.info("%s is back", " and ".join(sorted(self.away)))
        self.away.clear()


def _must_wait(asked: Collection[UUID], fired: dispatch.Fired) -> bool:
    """Whether to look again shortly and not at once: somebody else holds a task, or this machine's clock is
    ahead of PostgreSQL's, which says that a slot is still to come."""
    now = clock.now()
    return len(fired.next_run_at) < len(asked) or any(slot and slot <= now for slot in fired.next_run_at.values())


def fitting(batch: int, fired: int, took: float) -> int:
    """How many to fire together, after so many of at most `batch` took so many seconds."""
    if took > (FIRING if batch > BATCH else LONGEST):
        return max(FEWEST, batch // 2)
    if took < (FIRING if batch >= BATCH else LONGEST) / 2 and fired > batch // 2:
        return min(MOST, batch * 2)
    return batch
