"""What a system of some size needs: `python -m bench.sizing`. Arithmetic on what was measured and what is assumed.

docs/scaling.md shows its tables, and says how the figures were measured.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

DAY = 86_400
HOUR = 3_600
MILLION = 1_000_000
GIGABYTE = 1e9

FREEZE_AFTER = 200 * MILLION
"""Transactions after which PostgreSQL has to look through a table that it has not frozen: autovacuum_freeze_max_age."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one takes: ms of a processor, and the rest as its name says. Measured by `script/bench capacity`."""

    beat: float
    worker_main: float
    worker_process: float
    postgresql: float
    broker: float
    redis: float
    transactions: float
    messages: float
    log_bytes: float


PACKED = Run(
    beat=0.14,
    worker_main=0.02,
    worker_process=0.11,
    postgresql=0.19,
    broker=0.01,
    redis=0.01,
    transactions=0.015,
    messages=0.01,
    log_bytes=3860,
)
SINGLE = Run(
    beat=1.1,
    worker_main=1.9,
    worker_process=2.6,
    postgresql=2.7,
    broker=1.4,
    redis=0.01,
    transactions=2.0,
    messages=1.3,
    log_bytes=6020,
)
STEADY = Run(
    beat=1.1,
    worker_main=0.4,
    worker_process=1.1,
    postgresql=0.95,
    broker=0.33,
    redis=0.07,
    transactions=0.9,
    messages=0.29,
    log_bytes=3570,
)
WAYS = {"20,000 at once, in packs": PACKED, "5,000 at once, single": SINGLE, "100/s at random instants": STEADY}

TITLES = {
    "beat": ("beats", "ms"),
    "worker_main": ("a worker's main process", "ms"),
    "worker_process": ("its processes", "ms"),
    "postgresql": ("PostgreSQL", "ms"),
    "broker": ("RabbitMQ", "ms"),
    "redis": ("Redis", "ms"),
    "transactions": ("transactions", ""),
    "messages": ("messages", ""),
    "log_bytes": ("PostgreSQL's log", "bytes"),
}

RUN_BYTES = 940
TASK_BYTES = 550
ENTRY_BYTES = 720
"""On disk, with indexes, and in Redis."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of it. `packed` is the share of the runs that travel in packs."""

    tasks: int
    per_second: float
    packed: float
    peak: float = 2.0
    """How many times the mean an hour may bring."""
    work: float = 0.05
    """Seconds that a run holds a process, most of them waiting for somebody else."""
    keep_days: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Assumed, in USD: put in your own. A core comes with 4 GB of memory."""

    core_hour: float = 0.04
    disk_gb_month: float = 0.10
    standbys: int = 1
    """Further copies of PostgreSQL."""


USED = 0.6
"""The share of a core, or of a process, that may be used in the busiest hour."""

FEW = 100
"""Runs per second up to which a firing is of a run or two."""

BEATS_AT_LEAST = 3
PROCESSES_PER_WORKER = 16


@dataclass(frozen=True, kw_only=True)
class Need:
    """What that takes. Cores are such as the figures were measured on."""

    beats: int
    beat_cores: float
    worker_processes: int
    worker_main_processes: int
    worker_cores: float
    postgresql_cores: float
    transactions: float
    log_mb: float
    log_tb_a_day: float
    disk_gb_a_day: float
    disk_tb: float
    hours_to_freeze: float
    messages: float
    broker_cores: float
    redis_gb: float
    redis_cores: float
    usd_per_million_runs: float


NAMES = {
    "beats": "beats",
    "beat_cores": "cores of all beats",
    "worker_processes": "processes of all workers",
    "worker_main_processes": "workers, each with one main process",
    "worker_cores": "cores of all workers, the targets' own work left out",
    "postgresql_cores": "cores of PostgreSQL",
    "transactions": "transactions/s in the mean",
    "log_mb": "PostgreSQL's log, MB/s in the busiest hour",
    "log_tb_a_day": "PostgreSQL's log, TB a day",
    "disk_gb_a_day": "runs on disk, GB a day",
    "disk_tb": "disk of runs and tasks, TB",
    "hours_to_freeze": "hours to 200 million transactions",
    "messages": "messages/s in the busiest hour",
    "broker_cores": "cores of RabbitMQ's one node",
    "redis_gb": "Redis, GB",
    "redis_cores": "cores of Redis",
    "usd_per_million_runs": "USD per million runs",
}


def need(load: Load, prices: Prices) -> Need:
    each = _mean(load)
    busiest = load.per_second * load.peak
    cores = {name: busiest * getattr(each, name) / 1000 / USED for name in _PROCESSOR}
    processes = math.ceil(busiest * (load.work + each.worker_process / 1000) / USED)
    mains = max(math.ceil(cores["worker_main"]), math.ceil(processes / PROCESSES_PER_WORKER))
    disk_a_day = load.per_second * DAY * RUN_BYTES / GIGABYTE
    disk = disk_a_day * load.keep_days + load.tasks * TASK_BYTES / GIGABYTE
    copies = 1 + prices.standbys
    all_cores = sum(cores.values()) + cores["postgresql"] * prices.standbys
    month = all_cores * prices.core_hour * 730 + disk * copies * prices.disk_gb_month
    return Need(
        beats=max(BEATS_AT_LEAST, math.ceil(cores["beat"]) + 1),
        beat_cores=cores["beat"],
        worker_processes=processes,
        worker_main_processes=mains,
        worker_cores=cores["worker_main"] + cores["worker_process"],
        postgresql_cores=cores["postgresql"],
        transactions=load.per_second * each.transactions,
        log_mb=busiest * each.log_bytes / MILLION,
        log_tb_a_day=load.per_second * DAY * each.log_bytes / 1e12,
        disk_gb_a_day=disk_a_day,
        disk_tb=disk / 1000,
        hours_to_freeze=FREEZE_AFTER / (load.per_second * each.transactions) / HOUR,
        messages=busiest * each.messages,
        broker_cores=cores["broker"],
        redis_gb=load.tasks * ENTRY_BYTES / GIGABYTE,
        redis_cores=cores["redis"],
        usd_per_million_runs=month / (load.per_second * 730 * HOUR / MILLION),
    )


_PROCESSOR = ("beat", "worker_main", "worker_process", "postgresql", "broker", "redis")


def measured() -> str:
    """What runs take, and how many of them a core carries, in Markdown."""
    lines = [f"| per run | {' | '.join(WAYS)} |", f"|{'---|' * (len(WAYS) + 1)}"]
    for name, (title, unit) in TITLES.items():
        values = [getattr(run, name) for run in WAYS.values()]
        lines.append(f"| {title} | {' | '.join(f'{_shown(value)} {unit}'.rstrip() for value in values)} |")
    for name in _PROCESSOR:
        rates = [1000 * USED / getattr(run, name) for run in WAYS.values()]
        lines.append(f"| runs/s that a core carries: {TITLES[name][0]} | {' | '.join(map(_shown, rates))} |")
    return "\n".join(lines)


def _mean(load: Load) -> Run:
    """What a run takes in the mean of both ways to travel."""
    single = STEADY if load.per_second <= FEW else SINGLE
    shares = {
        field.name: load.packed * getattr(PACKED, field.name) + (1 - load.packed) * getattr(single, field.name)
        for field in fields(Run)
    }
    return Run(**shares)


LOADS = (
    Load(tasks=10_000, per_second=10, packed=0.0),
    Load(tasks=MILLION, per_second=1_000, packed=0.0),
    Load(tasks=MILLION, per_second=1_000, packed=0.8),
    Load(tasks=10 * MILLION, per_second=10_000, packed=0.0, keep_days=2),
    Load(tasks=10 * MILLION, per_second=10_000, packed=0.8, keep_days=2),
)


def table(loads: Sequence[Load], prices: Prices) -> str:
    """The needs of these loads beside each other, in Markdown."""
    needs = [need(load, prices) for load in loads]
    rows = [
        ("tasks", *(f"{load.tasks:,}" for load in loads)),
        ("runs/s in the mean", *(f"{load.per_second:,.0f}" for load in loads)),
        ("in packs", *(f"{load.packed:.0%}" for load in loads)),
        ("runs are kept for days", *(f"{load.keep_days:g}" for load in loads)),
        *((title, *(_shown(getattr(each, name)) for each in needs)) for name, title in NAMES.items()),
    ]
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * (len(loads) + 1)}", *rest])


def _shown(value: float) -> str:
    """With two figures that count."""
    if value >= 100:
        return f"{round(value, 1 - math.floor(math.log10(value))):,.0f}"
    return f"{value:.2g}" if value else "0"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description="What a system of some size needs.")
    parser.add_argument("--tasks", type=int, help="of one load; without it the table of docs/scaling.md is printed")
    for field in (*fields(Load)[1:], *fields(Prices)):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    prices = replace(Prices(), **_of(Prices, given))
    base = Load(tasks=MILLION, per_second=1_000, packed=0.5)
    print(table([replace(base, **_of(Load, given))] if _of(Load, given) else LOADS, prices))


def _of(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    names: Iterable[str] = (field.name for field in fields(kind))
    return {name: given[name] for name in names if name in given}


if __name__ == "__main__":
    main()
