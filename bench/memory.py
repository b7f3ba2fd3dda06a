"""How a worker's memory goes over many runs: flat after the first ones, or not.

`python -m bench.memory --runs 200000` prints a row per step. Runs are ordinary, claimed and recorded ones.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from bench import stage

STEP = 5_000
"""Runs between two looks."""

STALL = 120.0
"""Seconds without one more run after which it gives up."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The worker's memory, in MiB of its own: what it shares with its parent counts for the parent."""

    runs: int
    main: float
    children: float
    seconds: float


def look(runs: int, since: float) -> Point:
    """Finds the worker among this process's descendants and weighs it."""
    workers = [p for p in psutil.Process().children(recursive=True) if "worker" in " ".join(p.cmdline())]
    [main] = [p for p in workers if p.ppid() == psutil.Process().pid]
    weights = {p.pid: p.memory_full_info().uss / 2**20 for p in workers}
    return Point(
        runs=runs,
        main=weights.pop(main.pid),
        children=sum(weights.values()) / len(weights),
        seconds=time.monotonic() - since,
    )


def measure(runs: int, step: int = STEP) -> Iterator[Point]:
    """Sends that many runs to the worker of `load.running`, `step` at a time, and looks after each step."""
    since = time.monotonic()
    for done in range(step, runs + 1, step):
        _send(step)
        _await(done)
        yield look(done, since)


def growth(points: Sequence[Point], settled: int) -> tuple[float, float]:
    """MiB that the main process, and a child in the mean, grew by per 100,000 runs once `settled` were done.

    The slope of the least squares: a single look may fall on a moment of garbage.
    """
    after = [point for point in points if point.runs >= settled]
    return _slope(after, "main") * 100_000, _slope(after, "children") * 100_000


def _slope(points: Sequence[Point], what: str) -> float:
    x_mean = sum(point.runs for point in points) / len(points)
    y_mean = sum(getattr(point, what) for point in points) / len(points)
    covariance = sum((point.runs - x_mean) * (getattr(point, what) - y_mean) for point in points)
    return float(covariance / sum((point.runs - x_mean) ** 2 for point in points))


def _send(count: int) -> None:
    """Triggers that many runs of one task by hand, in batches, past beat."""
    from uuid import uuid4  # noqa: PLC0415 - reads the settings, which stand only now

    from app import db, outbox, publishing, runs, schemas, tasks  # noqa: PLC0415
    from app.states import Trigger  # noqa: PLC0415

    fields = schemas.TaskSchema().load({"target": "debug.echo", "schedule": {"type": "interval", "every": 86400}})
    publisher = publishing.Publisher()
    for start in range(0, count, 500):
        with db.transaction() as session:
            now = db.now(session)
            task = tasks.create(session, now, fields)
            new = [
                runs.NewRun(id=uuid4(), task=task, slot=now.replace(microsecond=n), trigger=Trigger.MANUAL)
                for n in range(min(500, count - start))
            ]
            runs.record(session, now, new)
        sent = publisher.publish([outbox.message(task, run) for run in new])
        with db.transaction() as session:  # or the chores would send them once more
            runs.mark_queued(session, sent)
    publisher.close()


def _await(count: int) -> None:
    """Waits until that many runs have succeeded."""
    from sqlalchemy import text  # noqa: PLC0415

    from app import db  # noqa: PLC0415

    seen, moved_at = -1, time.monotonic()
    while seen < count:
        with db.transaction() as session:
            now_seen = session.scalar(text("SELECT count(*) FROM runs WHERE state = 'succeeded'")) or 0
        if now_seen != seen:
            seen, moved_at = now_seen, time.monotonic()
        if time.monotonic() - moved_at > STALL:
            sys.exit(f"bench: no run ended for {STALL:.0f} s; {seen} of {count} are done")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200_000, help="how many runs; a multiple of 5,000")
    parser.add_argument("--settled", type=int, default=20_000, help="from which run on it is to be flat")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped too
    points = []
    try:
        with stage.stores():
            from bench import load  # noqa: PLC0415 - reads the settings, which stand only now

            with load.running(beats=1):
                for point in measure(given.runs):
                    points.append(point)
                    row = f"main {point.main:7.1f} MiB   a child {point.children:7.1f} MiB   {point.seconds:7.0f} s"
                    print(f"{point.runs:>8} runs   {row}", flush=True)
    except (stage.Missing, stage.NotOurs) as exc:
        sys.exit(f"bench: {exc}")
    main_growth, child_growth = growth(points, given.settled)
    print(f"per 100,000 runs after {given.settled}: main {main_growth:+.2f} MiB, a child {child_growth:+.2f} MiB")


if __name__ == "__main__":
    main()
