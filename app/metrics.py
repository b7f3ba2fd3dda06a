"""What every process counts and measures, for Prometheus: the names, in one place. `app.exporter` shows them.

A process that forks counts in files that its children share with it, in a folder of its own, so that one scrape tells
of all of them. What a process *is* at a moment, as against what it did, is read when it is scraped: see there.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Histogram, values

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own name for where the files are."""

PREFIX = "punctual-metrics-"
LOCK = "lock"

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; bounds for what takes milliseconds."""

PROMISED = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds for lateness: 10 s is the promise."""

LONG = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
"""Bounds for what a target may take."""


def _parent() -> Path:
    """Where folders are made: in memory where that can be had, as a busy disk must not stall a run."""
    shared = Path("/dev/shm")  # noqa: S108 - a name of the system's
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _make_folder() -> Path:
    """Makes this process's folder, and removes those of processes that were killed: nobody holds their lock."""
    parent = _parent()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    held = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder / "new").rename(folder / LOCK)  # who sees the lock finds it locked
    for other in parent.glob(f"{PREFIX}*"):
        if other != folder and _is_left(other):
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _is_left(folder: Path) -> bool:
    """Whether the process whose folder this is has ended, and its children too: each has the descriptor. One that is
    being made, and one of another account, is none of ours."""
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _Process:
    """Whose files a process writes: its own, by its id, unless it takes a name that another one has left."""

    name: str | None = None
    owner = os.getpid()
    folder = _make_folder()

    @classmethod
    def identify(cls) -> str:
        return cls.name or str(os.getpid())


def become(name: str) -> None:
    """This process goes on with the files of an earlier one of this name, which has ended: so that a pool whose
    processes come and go has as many files as it has places."""
    _Process.name = name


def folder() -> Path:
    """Where this process and its children count."""
    return _Process.folder


def owner() -> int:
    """The id of the process that the others were forked from, and which is scraped for all of them."""
    return _Process.owner


@atexit.register
def _remove_folder() -> None:
    if os.getpid() == _Process.owner:
        shutil.rmtree(_Process.folder, ignore_errors=True)


# Always anew: what is inherited is the folder of whoever started this process, which counts for itself.
os.environ[FOLDER] = str(_Process.folder)
values.ValueClass = values.MultiProcessValue(_Process.identify)  # type: ignore[no-untyped-call]

# Runs, counted by the process that moves them, once that is committed.
RUNS_FIRED = Counter("punctual_runs_fired", "Runs that were recorded to be executed.", ["trigger"])
RUNS = Counter("punctual_runs", "Runs by the state that they came to, and why.", ["state", "reason"])
LATENESS = Histogram(
    "punctual_run_lateness_seconds",
    "From the slot to the start of the first attempt, by the worker's clock.",
    ["queue"],
    buckets=PROMISED,
)
DURATION = Histogram("punctual_attempt_duration_seconds", "How long targets took.", ["target"], buckets=LONG)

# The way to the broker.
MESSAGES = Counter("punctual_messages", "Messages that were sent, by what the broker said.", ["answer"])

# Beats.
TICK = Histogram("punctual_tick_seconds", "The work of a tick, without its waiting.", buckets=QUICK)
LEASES = Counter("punctual_leases", "Leases that were taken, given back, or lost.", ["move"])
ENTRIES = Counter("punctual_entries_written", "Entries that were written to Redis.")
CHORE = Histogram("punctual_chore_seconds", "A turn of a chore.", ["chore"], buckets=QUICK)
CHORE_WORK = Counter("punctual_chore_work", "What chores repaired, each in things of its own.", ["chore"])
CHORE_FAILURES = Counter("punctual_chore_failures", "Turns of a chore that failed.", ["chore"])

# Web.
REQUESTS = Histogram(
    "punctual_http_request_seconds", "Requests that were answered.", ["endpoint", "method", "status"], buckets=QUICK
)

# Everybody.
UNAVAILABLE = Counter("punctual_database_unavailable", "Transactions for which PostgreSQL was away.")


@contextlib.contextmanager
def turn(chore: str) -> Iterator[None]:
    """A turn of a chore: how long it takes, and whether it fails."""
    with CHORE.labels(chore).time(), CHORE_FAILURES.labels(chore).count_exceptions():
        yield


def moved(state: str, reason: str | None = None, count: int = 1) -> None:
    """Runs came to a state."""
    if count:
        RUNS.labels(state, reason or "").inc(count)


def observe(histogram: Histogram, measured: Sequence[float]) -> None:
    """Notes what was measured, in one go: by itself each costs several times what it does among fifty."""
    for bucket, count in Counted(bisect_left(histogram._upper_bounds, each) for each in measured).items():  # noqa: SLF001
        histogram._buckets[bucket].inc(count)  # noqa: SLF001
    if measured:
        histogram._sum.inc(sum(measured))  # noqa: SLF001


def _locks() -> list[Any]:
    """The lock that all values of prometheus_client share, and those of each metric."""
    cells = values.ValueClass.inc.__closure__ or ()
    lock_type = type(CHORE._lock)  # noqa: SLF001
    shared = [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, lock_type)]
    assert len(shared) == 1, "prometheus_client keeps its lock elsewhere now"
    labelled = [each for each in globals().values() if isinstance(each, Counter | Histogram) and hasattr(each, "_lock")]
    return [each._lock for each in labelled] + shared  # noqa: SLF001


_LOCKS = _locks()


def _hold() -> None:
    """A thread that counts at the moment of a fork would leave its lock locked in the child, for ever."""
    for lock in _LOCKS:
        lock.acquire()


def _let_go() -> None:
    for lock in reversed(_LOCKS):
        with contextlib.suppress(RuntimeError):
            lock.release()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
