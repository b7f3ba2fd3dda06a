"""What grows with the number of registered tasks, and what does not.

The tick is measured on a scheduler that is driven by hand in this process, alone and without its chores: from the
call of `tick` to its return, with a hint sent before, so that it does all its work and then does not wait. Memory
and the rebuild are a real beat process's.
"""

import statistics
import time
from datetime import timedelta

import psutil

from app import bell, clock, settings
from app.broker import celery_app
from beat import entries
from beat import main as _configured  # noqa: F401 - sets what a beat's app is configured with
from beat.scheduler import PunctualScheduler
from bench import load, stage
from bench.figures import Figure

FAR = timedelta(days=300)
SPREAD = 40 * 86_400
"""Seconds over which the far slots are spread."""

TICKS = 20
DUE = 100
DUE_TICKS = 3
MEGABYTE = 1024 * 1024


def size_1k() -> list[Figure]:
    return _size(1_000)


def size_100k() -> list[Figure]:
    return _size(100_000)


def size_1m() -> list[Figure]:
    return _size(1_000_000)


def _size(count: int) -> list[Figure]:
    with load.running(beats=0):
        pass  # its worker says what it offers, and is not needed any more
    far = clock.now() + FAR
    load.fill([far + timedelta(seconds=n % SPREAD) for n in range(count)], mirrored=True)
    with stage.connection() as database:
        database.execute("VACUUM ANALYZE tasks")  # as autovacuum has long done where so many stand
    name = f"{count:,} tasks"
    return [*_rebuild(name, count), *_ticks(name)]


def _rebuild(name: str, count: int) -> list[Figure]:
    """A beat finds an empty Redis, as after FLUSHALL, and fills it."""
    client = stage.client()
    with stage.running({"beat": load.BEAT}):
        stage.wait(_is_complete, within=60 + count / 1000, missing=lambda: "the first mirroring was not done")
        client.flushdb()
        empty, started = client.info("memory")["used_memory"], time.monotonic()
        stage.wait(_is_complete, within=60 + count / 1000, missing=lambda: "the rebuild was not done", every=0.02)
        took = time.monotonic() - started
        resident = sum(beat.memory_info().rss for beat in psutil.Process().children() if "beat" in beat.cmdline())
        entry = (client.info("memory")["used_memory"] - empty) / count
    return [
        Figure(what=f"{name}: rebuild", value=count / took, unit="entries/s"),
        Figure(what=f"{name}: Redis per entry", value=entry, unit="bytes"),
        Figure(what=f"{name}: resident memory of beat", value=resident / MEGABYTE, unit="MB"),
    ]


def _ticks(name: str) -> list[Figure]:
    scheduler = PunctualScheduler(celery_app, lazy=True)
    try:
        stage.wait(lambda: _tick(scheduler) > 0 and _is_complete(), within=60, missing=lambda: "it led no bucket")
        idle = [_tick(scheduler) for _ in range(TICKS)]
        busy = [_busy_tick(scheduler) for _ in range(DUE_TICKS)]
    finally:
        scheduler.leases.release()
        scheduler.publisher.close()
    return [
        Figure(what=f"{name}: idle tick", value=statistics.median(idle) * 1000, unit="ms"),
        Figure(what=f"{name}: tick with {DUE} due", value=statistics.median(busy) * 1000, unit="ms"),
    ]


def _tick(scheduler: PunctualScheduler) -> float:
    """Seconds that a tick takes for its work."""
    bell.ringer().ring(bell.Hint(bucket=0))
    started = time.monotonic()
    scheduler.tick()
    return time.monotonic() - started


def _busy_tick(scheduler: PunctualScheduler) -> float:
    slot = clock.now() + timedelta(seconds=3)
    load.register([slot] * DUE)
    while (slot - clock.now()).total_seconds() > 0.3:
        _tick(scheduler)
        time.sleep(0.05)
    time.sleep(max(0.0, (slot - clock.now()).total_seconds() + 0.002))
    took = _tick(scheduler)
    # a later tick marks what was sent, and nobody else makes one
    stage.wait(
        lambda: _tick(scheduler) > 0 and not scheduler.sent, within=5, missing=lambda: "what was sent was not marked"
    )
    load.wait_for("queued", DUE, since=slot, within=1)
    return took


def _is_complete() -> bool:
    """Whether a beat has marked each bucket as holding an entry for each of its tasks."""
    keys = [entries.mirrored_key(bucket) for bucket in range(settings.load().PUNCTUAL_BUCKETS)]
    return bool(stage.client().exists(*keys) == len(keys))
