"""What a run takes: of the processors, by process; of PostgreSQL's log and disk; of the broker.

Processor time depends on the machine, its shares much less so, and neither on how busy others keep it. What the same
processes take at rest is measured before, and subtracted.
"""

import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from app import clock, db, summaries
from bench import lateness, load, stage
from bench.bursts import UNPACKED, ahead
from bench.figures import Figure

COUNT = 20_000
FEWER = 5_000
"""Of single runs, which take far longer."""

PER_SECOND, SECONDS = 100, 40
REST = 20.0
MARKED = 3.0
"""Seconds after which nothing of a burst is left to be done."""

TASKS = 100_000
METRICS_PORT = 19_460
PORTS = 10
AMQP_PORT = 5672

SIZES = (
    "SELECT sum(pg_table_size(part)), sum(pg_indexes_size(part))"
    " FROM (SELECT relid FROM pg_partition_tree(%(table)s) UNION SELECT %(table)s::regclass) AS parts (part)"
)

UNITS = {"transactions": "tx", "log of PostgreSQL": "bytes", "messages": "messages"}
"""Of what is no processor's time."""


def packed() -> list[Figure]:
    return _capacity("at once, packed", {}, [ahead(COUNT)] * COUNT)


def single() -> list[Figure]:
    return _capacity("at once, single", UNPACKED, [ahead(FEWER)] * FEWER)


def steady() -> list[Figure]:
    return _capacity(f"at {PER_SECOND}/s", {}, lateness.instants(ahead(COUNT), PER_SECOND, SECONDS))


def tasks() -> list[Figure]:
    """What tasks take on disk, when nothing of it is left over from changes."""
    with load.running(beats=0):
        pass  # its worker says what it offers
    far = clock.now().replace(microsecond=0) + timedelta(days=365)
    load.fill([far] * TASKS, mirrored=True)
    return list(_disk("task", "tasks", TASKS))


def _capacity(name: str, env: dict[str, str], slots: Sequence[datetime]) -> list[Figure]:
    with load.running(env={"PUNCTUAL_METRICS_PORT": str(METRICS_PORT)} | env):
        load.warm_up()
        before = _used()
        time.sleep(REST)
        rest = {what: (value - before[what]) / REST for what, value in _used().items()}
        now = clock.now()
        moved = [slot + (ahead(len(slots)) - slots[0]) for slot in slots]
        load.fill(moved)
        load.wait_until_mirrored(before=moved[0])
        began, before = time.monotonic(), _used()
        left = (moved[-1] - now).total_seconds()
        load.wait_for("succeeded", len(moved), since=moved[0], within=left + 240)
        time.sleep(MARKED)
        took, after = time.monotonic() - began, _used()
    each = {what: (after[what] - before[what] - took * rest[what]) / len(moved) for what in after}
    figures = [*_figures(name, each, "run"), *_figures("at rest", rest, "s")]
    summary = _summary(name, moved[0]) if len(set(moved)) == 1 else ()
    return [*figures, *summary, *_disk("run", "runs", len(moved))]


def _summary(name: str, slot: datetime) -> Iterator[Figure]:
    """What a minute's figures take each time that they are made anew: its runs are counted."""
    minute = slot.replace(second=0, microsecond=0)
    count = load.scalar("SELECT count(*) FROM runs WHERE scheduled_for >= :a AND scheduled_for < :b",
                        a=minute, b=minute + summaries.MINUTE)  # fmt: skip
    began = time.monotonic()
    with db.transaction() as session:
        given = summaries.parameters(db.now(session)) | {"a_start": minute}
        db.execute(session, summaries._MAKE, given)  # noqa: SLF001 - the chore's very statement
    yield Figure(what=f"{name}: a minute's summary", value=(time.monotonic() - began) * 1e6 / count, unit="us/run")


def _figures(name: str, values: Mapping[str, float], per: str) -> Iterator[Figure]:
    for what, value in values.items():
        scale, unit = (1, UNITS[what]) if what in UNITS else (1000, "ms")
        yield Figure(what=f"{name}: {what}", value=value * scale, unit=f"{unit}/{per}")


def _disk(what: str, table: str, count: int) -> Iterator[Figure]:
    """Bytes as they were left, which autovacuum uses again, and what is left of them when all of that is taken away."""
    for how in ("as left", "at least"):
        with stage.connection() as database:
            if how == "at least":
                database.execute(f"VACUUM FULL {table}")
            [heap, indexes] = database.execute(SIZES, {"table": table}).fetchone() or (0, 0)
        yield Figure(what=f"disk per {what}, {how}: rows", value=float(heap) / count, unit="bytes")
        yield Figure(what=f"disk per {what}, {how}: indexes", value=float(indexes) / count, unit="bytes")


def _used() -> dict[str, float]:
    """All that was used up to now."""
    used = _processors()
    info = stage.client().info()
    used["Redis"] = info["used_cpu_user"] + info["used_cpu_sys"]
    with stage.connection() as database:
        log = database.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float").fetchone()
        done = database.execute(
            "SELECT xact_commit::float FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        backend = database.info.backend_pid
    assert log is not None
    assert done is not None
    used["log of PostgreSQL"], used["transactions"] = log[0], done[0]
    with suppress(psutil.Error):  # it is on another machine
        used["PostgreSQL"] = _family(psutil.Process(backend).parent())
    with suppress(psutil.Error, StopIteration):
        used["RabbitMQ"] = _family(_broker())
    used["messages"] = sum(_messages())
    return used


def _processors() -> dict[str, float]:
    """Seconds of beats and workers, which are this process's children."""
    used: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children():
        line = process.cmdline()
        if "beat" in line:
            used["beats"] += _own(process)
        elif "worker" in line:
            used["worker, main process"] += _own(process)
            used["worker, its processes"] += sum(_own(child) for child in process.children())
    return used


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _family(process: psutil.Process | None) -> float:
    """Of a process, of those that it started, and of those of them that have ended."""
    if process is None:
        raise psutil.NoSuchProcess(0)
    times = process.cpu_times()
    ended = times.children_user + times.children_system
    return _own(process) + ended + sum(_own(child) for child in process.children(recursive=True))


def _broker() -> psutil.Process:
    sockets: list[Any] = psutil.net_connections("tcp")
    listening = (one for one in sockets if one.status == psutil.CONN_LISTEN)
    return psutil.Process(next(one.pid for one in listening if one.laddr.port == AMQP_PORT))


def _messages() -> Iterator[float]:
    """How many each beat has sent."""
    for port in range(METRICS_PORT, METRICS_PORT + PORTS):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as page:
            for family in text_string_to_metric_families(page.read().decode()):
                if family.name == "punctual_messages":
                    yield from (sample.value for sample in family.samples if sample.name.endswith("_total"))
