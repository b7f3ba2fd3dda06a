"""`script/bench`: runs the benchmarks and prints their table. Bounded in count and time, on loopback only."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from bench import stage

Row = tuple[str, list[float], str]
"""What was measured, each round's value, and its unit."""


def register(slots: Sequence[datetime]) -> None:
    """Registers a one-time `debug.echo` for each slot, and rings the bell."""
    from app import bell, clock, db, schemas, tasks  # noqa: PLC0415 - reads the settings, which stand only now

    schema = schemas.TaskSchema()
    for start in range(0, len(slots), 1000):
        bodies = [
            {"target": "debug.echo", "schedule": {"type": "once", "at": slot.isoformat()}}
            for slot in slots[start : start + 1000]
        ]
        with db.transaction() as session:
            created = tasks.create_many(session, clock.now(), [schema.load(body) for body in bodies])
        for bucket in {task.bucket for task in created}:
            bell.ring(bucket)


def finished(since: datetime, count: int, within: float) -> list[dict[str, float]]:
    """Waits until `count` runs from `since` on have succeeded; per run the seconds from its slot to each stamp."""
    from sqlalchemy import text  # noqa: PLC0415

    from app import db  # noqa: PLC0415

    stamps = ("fired_at", "published_at", "started_at", "finished_at")
    columns = ", ".join(f"extract(epoch FROM {stamp} - scheduled_for)::float AS {stamp}" for stamp in stamps)
    query = text(f"SELECT {columns} FROM runs WHERE scheduled_for >= :since AND state = 'succeeded'")
    end = time.monotonic() + within
    while time.monotonic() < end:
        with db.transaction() as session:
            found = [dict(row) for row in session.execute(query, {"since": since}).mappings()]
        if len(found) >= count:
            return found
        time.sleep(0.2)
    sys.exit(f"bench: only {len(found)} of {count} runs were done within {within} s")


def soon() -> list[Row]:
    """Registered for half a second ahead on an idle system, one at a time."""
    from app import clock  # noqa: PLC0415

    late = []
    for _ in range(20):
        slot = clock.now() + timedelta(seconds=0.5)
        register([slot])
        late.append(finished(slot, 1, within=15)[0]["started_at"] * 1000)
    return [("soon: lateness p50", [statistics.median(late)], "ms"), ("soon: worst of 20", [max(late)], "ms")]


def steady() -> list[Row]:
    """A steady load at evenly spread instants."""
    from app import clock  # noqa: PLC0415

    per_second, seconds = 100, 15
    start = clock.now() + timedelta(seconds=3)
    register([start + timedelta(seconds=n / per_second) for n in range(per_second * seconds)])
    late = sorted(run["started_at"] * 1000 for run in finished(start, per_second * seconds, within=seconds + 30))
    return [
        (f"steady {per_second}/s: lateness p50", [statistics.median(late)], "ms"),
        (f"steady {per_second}/s: lateness p99", [late[int(len(late) * 0.99)]], "ms"),
    ]


def burst() -> list[Row]:
    """Many one-time tasks due in the same instant."""
    from app import clock  # noqa: PLC0415

    count = 2000
    start = clock.now() + timedelta(seconds=4)
    register([start] * count)
    runs = finished(start, count, within=60)
    last = {stamp: max(run[stamp] for run in runs) for stamp in runs[0]}
    return [
        (f"burst of {count}: last one {stamp.removesuffix('_at')}", [last[stamp]], "s")
        for stamp in ("fired_at", "published_at", "started_at")
    ]


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {"soon": soon, "steady": steady, "burst": burst}


def measure(names: Sequence[str], rounds: int) -> list[Row]:
    """Each benchmark `rounds` times, in turns, so that a noisy minute does not fall on one of them alone."""
    rows: dict[str, Row] = {}
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            for what, values, unit in BENCHMARKS[name]():
                rows.setdefault(what, (what, [], unit))[1].extend(values)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench", description="Measures Punctual on this machine.")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which benchmarks; all where none is named")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run")
    given = parser.parse_args()
    with stage.stack():
        rows = measure(given.names or list(BENCHMARKS), given.rounds)
    print(f"\n{'what':<40} {'median':>10}   {'least':>10} {'most':>10}")
    for what, values, unit in rows:
        low, high = min(values), max(values)
        print(f"{what:<40} {statistics.median(values):>10.2f}   {low:>10.2f} {high:>10.2f} {unit}")


if __name__ == "__main__":
    main()
