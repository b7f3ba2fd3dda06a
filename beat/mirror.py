"""The mirror: keeps the entries of the held buckets as PostgreSQL has the tasks, which decides.

What changed is written in bulk, the soonest slot first; after a loss all is, a batch at a time, so that what falls due
meanwhile rings in time. Memory follows the batch, not what is registered.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, DateTime, Integer, SmallInteger, Uuid, any_, bindparam, select, true, tuple_, update

from app import db, keys
from app.models import Task
from app.states import TaskState
from beat.entries import Entries, Entry
from beat.leases import Leases

BATCH = 1000
REBUILD_BATCH = 2000

BEGINNING = (datetime.min.replace(tzinfo=UTC), UUID(int=0))
"""Before the first slot of any task."""

log = logging.getLogger(__name__)


class Mirror:
    """Of one beat, over the buckets that it holds at that moment."""

    def __init__(self, entries: Entries, leases: Leases) -> None:
        self.entries = entries
        self.leases = leases
        self.rebuild = Rebuild()

    def turn(self) -> bool:
        """Brings entries up to what PostgreSQL holds: after a loss all, else what changed. One batch of each, so
        that what is due rings in between; says whether there is more."""
        held = self.leases.held()
        self.rebuild.reset(self.entries.incomplete(held))
        share = max(1, BATCH // max(1, len(held)))
        changed = _changed(held, share)
        by_bucket = _by_bucket(changed)
        written = self.write(by_bucket)
        _mark_mirrored([row for row in changed if row.bucket in written])
        self._rebuild_some()
        return bool(self.rebuild.buckets) or any(len(by_bucket[bucket]) >= share for bucket in written)

    def _rebuild_some(self) -> None:
        """One batch of a rebuild, the soonest slots first; the rest waits for the next ticks, so that what is
        due meanwhile rings in time."""
        if not self.rebuild.buckets:
            return
        rows = self.rebuild.batch()
        complete = len(rows) < REBUILD_BATCH
        by_bucket = _by_bucket(rows)
        written = self.write({bucket: by_bucket.get(bucket, []) for bucket in self.rebuild.buckets}, complete=complete)
        if complete:
            log.info("rebuilt the entries of %d buckets", len(written))
            self.rebuild.reset(self.rebuild.buckets - written)

    def write(self, by_bucket: dict[int, list[Entry]], *, complete: bool = False) -> set[int]:
        """Writes entries of buckets that are still held. Returns those of which all was written."""
        held = self.leases.held()
        mine = {bucket: changed for bucket, changed in by_bucket.items() if bucket in held}
        return self.entries.write(mine, self.leases.tokens, complete=complete)


class Rebuild:
    """Walks all active tasks of some buckets, the soonest slot first, a batch at a time."""

    def __init__(self) -> None:
        self.buckets: set[int] = set()
        self.after = BEGINNING

    def reset(self, buckets: Collection[int]) -> None:
        """Sets which buckets are to be rebuilt. Another set begins anew: a second writing does no harm."""
        if set(buckets) != self.buckets:
            self.buckets = set(buckets)
            self.after = BEGINNING

    def batch(self) -> Sequence[Any]:
        at, task_id = self.after
        given = {"buckets": sorted(self.buckets), "after_at": at, "after_id": task_id, "limit": REBUILD_BATCH}
        with db.transaction() as session:
            rows = db.execute(session, _REBUILD, given).all()
        if rows:
            self.after = (rows[-1].next_run_at, rows[-1].id)
        return rows


def _changed(buckets: Collection[int], share: int) -> Sequence[Any]:
    """Tasks of these buckets whose entry is not of their version: of each at most `share`, the soonest slot first.

    Bucket by bucket, in the order of the index: PostgreSQL takes all versions to differ, and would scan the table.
    """
    if not buckets:
        return []
    with db.statement() as session:
        return db.execute(session, _CHANGED, db.arrays("held", bucket=sorted(buckets)) | {"share": share}).all()


def _mark_mirrored(rows: Sequence[Any]) -> None:
    """Notes which version was mirrored. A task that changed meanwhile has another one and is mirrored again."""
    if not rows:
        return
    with db.statement() as session:
        done = db.arrays("done", id=(row.id for row in rows), version=(row.version for row in rows))
        db.execute(session, _MARK_MIRRORED, done)


def _by_bucket(rows: Iterable[Any]) -> dict[int, list[Entry]]:
    by_bucket: dict[int, list[Entry]] = defaultdict(list)
    for row in rows:
        slot = row.next_run_at if row.state == TaskState.ACTIVE else None
        by_bucket[row.bucket].append(Entry(task_id=row.id, target=row.target, slot=slot))
    return by_bucket


# Built once.
_REBUILD = (
    select(Task.id, Task.bucket, Task.target, Task.next_run_at, Task.state)
    .where(
        Task.bucket == any_(bindparam("buckets", type_=ARRAY(SmallInteger()))),
        Task.state == TaskState.ACTIVE,
        tuple_(Task.next_run_at, Task.id)
        > tuple_(bindparam("after_at", type_=DateTime(timezone=True)), bindparam("after_id", type_=Uuid())),
    )
    .order_by(Task.next_run_at, Task.id)
    .limit(bindparam("limit", type_=Integer()))
)
_held = db.rows("held", bucket=SmallInteger())
_each = (
    select(Task.id, Task.bucket, Task.target, Task.next_run_at, Task.state, Task.version)
    .where(Task.bucket == _held.c.bucket, Task.version != Task.mirrored_version)
    .order_by(Task.next_run_at)
    .limit(bindparam("share"))
    .lateral("changed")
)
_CHANGED = select(_each).select_from(_held).join(_each, true())

_done = db.rows("done", id=Uuid(), version=Integer())
_MARK_MIRRORED = (
    update(Task)
    .where(keys.looked_up(Task.id, _done.c.id), Task.version == _done.c.version)
    .values(mirrored_version=Task.version)
)
