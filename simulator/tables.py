"""What each statement of those who fire means, on tasks and runs in memory.

It knows the very statements that the code has built; another one ends the simulation. A test holds its answers against
those of a real PostgreSQL: tests/integration/test_simulator.py.
"""

from bisect import bisect_left, insort
from collections import Counter, namedtuple
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy import Update

from app import db, dispatch, incidents, outbox, runs, summaries
from app.states import OPEN, RunState, TaskState
from beat import mirror
from simulator.postgresql_model import Given, Server, Transaction
from simulator.world import World

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

_rows_of: Any = namedtuple  # noqa: PYI024 - the fields are a statement's
Locked = _rows_of("Locked", [*(column.key for column in dispatch.COLUMNS), "now"])
Changed = _rows_of("Changed", ["id", "bucket", "target", "next_run_at", "state", "version"])
Rebuilt = _rows_of("Rebuilt", Changed._fields[:-1])

Meaning = Callable[[Transaction, Given], list[Any]]


class Unmodelled(BaseException):
    """A statement that is not known here. No handler of the real code may swallow it."""


class Tables(Server):
    """`unique`, `locks`: whether it heeds the unique slot, and locks rows. Both are there to be switched off."""

    unique = True
    locks = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.tasks: dict[UUID, SimpleNamespace] = {}
        self.runs: dict[tuple[UUID, datetime], SimpleNamespace] = {}
        self.by_id: dict[UUID, SimpleNamespace] = {}
        self.doubled: list[tuple[UUID, datetime]] = []
        """Slots that were recorded once more."""
        self._due: list[tuple[datetime, UUID]] = []
        self._in_bucket: dict[int, list[UUID]] = {}
        self._unmirrored: dict[int, set[UUID]] = {}
        self._pending: dict[UUID, SimpleNamespace] = {}
        self._open_runs: Counter[UUID] = Counter()
        self._meanings: dict[Any, Meaning] = {
            db._NOW: lambda _tx, _given: [(self.now(),)],  # noqa: SLF001
            dispatch._LOCK: self._lock,  # noqa: SLF001
            dispatch._LOCK_OVERDUE: self._lock_overdue,  # noqa: SLF001
            dispatch._MIRROR_AGAIN: self._mirror_again,  # noqa: SLF001
            dispatch._THERE: self._there,  # noqa: SLF001
            dispatch._ADVANCE: self._advance,  # noqa: SLF001
            runs._RECORD: self._record,  # noqa: SLF001
            runs._OPEN_TASKS: self._open_tasks,  # noqa: SLF001
            runs._UNCLAIMED: self._unclaimed,  # noqa: SLF001
            runs._MARK_QUEUED: self._mark_queued,  # noqa: SLF001
            outbox._LOCK_PENDING: self._lock_pending,  # noqa: SLF001
            outbox._TAKEN: self._taken,  # noqa: SLF001
            mirror._CHANGED: self._changed,  # noqa: SLF001
            mirror._MARK_MIRRORED: self._mark_mirrored,  # noqa: SLF001
            mirror._REBUILD: self._rebuild,  # noqa: SLF001
            summaries._REOPEN: lambda _tx, _given: [],  # noqa: SLF001 - the overview's, at which nobody looks here
            incidents._REPORT: lambda _tx, _given: [],  # noqa: SLF001 - likewise
        }

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.world.time)

    def statement(self, tx: Transaction, statement: Any, given: Given) -> list[Any]:
        """What it answers."""
        if statement in self._meanings:
            return self._meanings[statement](tx, given)
        if isinstance(statement, Update) and given.keys() == {"taken_id", "taken_slot"}:
            return self._take(tx, given)
        raise Unmodelled(str(statement))

    def register(self, task: SimpleNamespace) -> None:
        """A client registers a task."""
        self.tasks[task.id] = task
        self._in_bucket.setdefault(task.bucket, []).append(task.id)
        insort(self._due, (task.next_run_at, task.id))
        self._look_at_mirror(task)

    def execute(self, run_id: UUID) -> None:
        """A worker claims a run and is done with it."""
        run = self.by_id.get(run_id)
        if run is None or run.state not in {RunState.PENDING, RunState.QUEUED}:
            return
        if run.id in self.locked:
            self.world.at(self.world.time + 0.01, lambda: self.execute(run_id))
            return
        self._move(run, RunState.SUCCEEDED)

    def _lock_rows(self, tx: Transaction, ids: Iterable[UUID]) -> None:
        if self.locks:
            self.lock(tx, ids)

    def _lock(self, tx: Transaction, given: Given) -> list[Any]:
        rows = [self.tasks[task_id] for task_id in given["task_ids"] if task_id in self.tasks]
        free = [task for task in rows if self.is_free(tx, task.id)]
        self._lock_rows(tx, [task.id for task in free])
        now = self.now()
        return [Locked(*(getattr(task, column.key) for column in dispatch.COLUMNS), now) for task in free]

    def _lock_overdue(self, tx: Transaction, given: Given) -> list[Any]:
        found: list[UUID] = []
        for next_run_at, task_id in self._due:
            if next_run_at > given["until"] or len(found) == given["limit"]:
                break
            if self.is_free(tx, task_id):
                found.append(task_id)
        self._lock_rows(tx, found)
        return [(task_id,) for task_id in found]

    def _mirror_again(self, tx: Transaction, given: Given) -> list[Any]:
        tx.writes += [self._setting(task_id, mirrored_version=0) for task_id in given["task_ids"]]
        return []

    def _there(self, _tx: Transaction, given: Given) -> list[Any]:
        return [(task_id, self.tasks[task_id].version) for task_id in given["task_ids"] if task_id in self.tasks]

    def _advance(self, tx: Transaction, given: Given) -> list[Any]:
        columns = [given[f"after_{name}"] for name in dispatch.AFTER]
        for task_id, next_run_at, last_run_at, run_count, state in zip(*columns, strict=True):
            new = {"next_run_at": next_run_at, "last_run_at": last_run_at, "run_count": run_count}
            tx.writes.append(self._setting(task_id, **new, state=state))
        return []

    def _record(self, tx: Transaction, given: Given) -> list[Any]:
        names = ("id", "task_id", "slot", "trigger", "missed", "skipped", "held")
        rows = [
            dict(zip(names, row, strict=True)) for row in zip(*(given[f"given_{name}"] for name in names), strict=True)
        ]
        if self.unique:
            rows = [row for row in rows if (row["task_id"], row["slot"]) not in self.runs]
            # a slot that another transaction has yet to commit is waited for
            self.lock(tx, [(row["task_id"], row["slot"]) for row in rows])
        new = [SimpleNamespace(**row, fired_at=given["at"], recorded_at=self.world.time) for row in rows]
        tx.writes += [self._inserting(run) for run in new]
        return [(run.id,) for run in new]

    def _open_tasks(self, _tx: Transaction, given: Given) -> list[Any]:
        return [(task_id,) for task_id in given["asked_id"] if self._open_runs[task_id]]

    def _unclaimed(self, _tx: Transaction, given: Given) -> list[Any]:
        asked = (self._pending.get(run_id) for run_id in given["wanted_id"])
        return [(run.id,) for run in asked if run is not None and run.published_at is None]

    def _mark_queued(self, tx: Transaction, given: Given) -> list[Any]:
        wanted = {run_id for run_id in given["wanted_id"] if run_id in self._pending}
        self._lock_rows(tx, wanted)
        tx.writes += [self._moving(self._pending[run_id], RunState.QUEUED) for run_id in wanted]
        return []

    def _lock_pending(self, tx: Transaction, given: Given) -> list[Any]:
        before = self.now() - outbox.SENDING
        found = [
            run
            for run in self._pending.values()
            if (run.published_at or run.fired_at) < before and self.is_free(tx, run.id)
        ]
        found = sorted(found, key=lambda run: run.fired_at)[: given["limit"]]
        self._lock_rows(tx, [run.id for run in found])
        return [(run.id, run.slot) for run in found]

    def _take(self, tx: Transaction, given: Given) -> list[Any]:
        now = self.now()
        for run_id in given["taken_id"]:
            tx.writes.append(lambda run=self.by_id[run_id]: setattr(run, "published_at", now))  # type: ignore[misc]
        return []

    def _taken(self, _tx: Transaction, given: Given) -> list[Any]:
        """Rows of runs and tasks, as `outbox.message` reads them."""
        found = [self.by_id[run_id] for run_id in given["taken_id"]]
        return [(_travelling(run, self.tasks[run.task_id]), self.tasks[run.task_id]) for run in found]

    def _changed(self, _tx: Transaction, given: Given) -> list[Any]:
        rows: list[Any] = []
        for bucket in given["held_bucket"]:
            if changed := self._unmirrored.get(bucket):
                rows += self._soonest((self.tasks[task_id] for task_id in changed), given["share"], Changed)
        return rows

    def _mark_mirrored(self, tx: Transaction, given: Given) -> list[Any]:
        done = [
            (task_id, version)
            for task_id, version in zip(given["done_id"], given["done_version"], strict=True)
            if self.tasks[task_id].version == version
        ]
        self._lock_rows(tx, [task_id for task_id, _ in done])
        tx.writes += [self._setting(task_id, mirrored_version=version) for task_id, version in done]
        return []

    def _rebuild(self, _tx: Transaction, given: Given) -> list[Any]:
        after = given["after_at"], given["after_id"]
        tasks = (self.tasks[task_id] for bucket in given["buckets"] for task_id in self._in_bucket.get(bucket, ()))
        left = (task for task in tasks if task.state == TaskState.ACTIVE and (task.next_run_at, task.id) > after)
        return self._soonest(left, given["limit"], Rebuilt)

    def _soonest(self, tasks: Iterable[SimpleNamespace], limit: int, row: Any) -> list[Any]:
        least = sorted(tasks, key=lambda task: (task.next_run_at is None, task.next_run_at or EPOCH, task.id))[:limit]
        return [row(*(getattr(task, name) for name in row._fields)) for task in least]

    def _setting(self, task_id: UUID, **columns: Any) -> Callable[[], None]:
        return lambda: self._set(self.tasks[task_id], columns)

    def _set(self, task: SimpleNamespace, columns: dict[str, Any]) -> None:
        if "next_run_at" in columns and columns["next_run_at"] != task.next_run_at:
            if task.next_run_at is not None:
                del self._due[bisect_left(self._due, (task.next_run_at, task.id))]
            if columns["next_run_at"] is not None:
                insort(self._due, (columns["next_run_at"], task.id))
        vars(task).update(columns)
        self._look_at_mirror(task)

    def _look_at_mirror(self, task: SimpleNamespace) -> None:
        unmirrored = self._unmirrored.setdefault(task.bucket, set())
        (unmirrored.discard if task.version == task.mirrored_version else unmirrored.add)(task.id)

    def _inserting(self, run: SimpleNamespace) -> Callable[[], None]:
        return lambda: self._insert(run)

    def _insert(self, run: SimpleNamespace) -> None:
        slot = run.task_id, run.slot
        if slot in self.runs:
            self.doubled.append(slot)
        self.runs[slot] = self.by_id[run.id] = run
        run.published_at, run.state = None, RunState.SKIPPED if run.skipped else RunState.PENDING
        if not run.skipped:
            self._pending[run.id] = run
            self._open_runs[run.task_id] += 1

    def _moving(self, run: SimpleNamespace, state: RunState) -> Callable[[], None]:
        return lambda: self._move(run, state)

    def _move(self, run: SimpleNamespace, state: RunState) -> None:
        run.state = state
        self._pending.pop(run.id, None)
        if state not in OPEN:
            self._open_runs[run.task_id] -= 1


def _travelling(run: SimpleNamespace, task: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(
        id=run.id,
        scheduled_for=run.slot,
        attempt=1,
        trigger=run.trigger,
        target=task.target,
        queue=task.queue,
        args=None,
        kwargs=None,
    )
