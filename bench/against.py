"""The same work on stock Celery and RedBeat, measured from its results. Its figures bear the names of ours."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from app import clock
from bench import bursts, lateness, stage, stock
from bench.figures import STOCK, Figure

BEAT = "celery -A bench.stock:app beat -S redbeat.RedBeatScheduler -l WARNING"
WORKER = "celery -A bench.stock:app worker --concurrency=2 -l WARNING"
WARM_UP = 60


def burst() -> list[Figure]:
    """10,000 entries due in one instant: when the last one started, and when its result was stored."""
    count = 10_000
    with _running(beats=1):
        _warm_up()
        slot = bursts.ahead(count)
        stock.register([slot] * count)
        _wait_for(count, within=(slot - clock.now()).total_seconds() + 180)
        done = _results()
    started = max(started - due for due, started, _ in done)
    finished = max(finished - due for due, _, finished in done)
    name = "burst of 10,000: last"
    return [
        Figure(what=f"{name} started", value=started, unit="s", system=STOCK),
        Figure(what=f"{name} finished", value=finished, unit="s", system=STOCK),
    ]


def steady() -> list[Figure]:
    """A steady load at the same instants as ours."""
    with _running(beats=1):
        _warm_up()
        slots = lateness.instants(bursts.ahead(lateness.PER_SECOND * lateness.SECONDS))
        stock.register(slots)
        _wait_for(len(slots), within=(slots[-1] - clock.now()).total_seconds() + 180)
        return lateness.spread(lateness.STEADY, [started - due for due, started, _ in _results()], STOCK)


def backlog() -> list[Figure]:
    """Messages that a worker finds when it starts: results stored per second. Its start is not counted."""
    with _running(beats=1, workers=0):
        with _running():
            _warm_up()
        _send(bursts.BACKLOG)
        with _running():
            _wait_for(bursts.BACKLOG, within=300)
        done = _results()
    took = max(finished for *_, finished in done) - min(started for _, started, _ in done)
    name = "backlog of 20,000: recorded"
    return [Figure(what=name, value=bursts.BACKLOG / took, unit="runs/s", system=STOCK)]


@contextmanager
def _running(*, beats: int = 0, workers: int = 1) -> Iterator[None]:
    """Runs stock processes, and goes on when the worker answers. Beat has an empty schedule to read until then."""
    lines = {f"stock beat.{n}": BEAT for n in range(beats)} | {f"stock worker.{n}": WORKER for n in range(workers)}
    with stage.running(lines):
        if workers:
            stage.wait(
                lambda: bool(stock.app.control.ping(timeout=0.5)),
                within=60,
                missing=lambda: "stock's worker was not up",
            )
        yield


def _warm_up() -> None:
    """A few dozen messages, so that connections and the table stand, and an entry, so that beat is seen to ring."""
    _send(WARM_UP)
    _wait_for(WARM_UP, within=30)
    stock.register([clock.now() + timedelta(seconds=1)])
    _wait_for(WARM_UP + 1, within=30)
    with stage.connection() as database:
        database.execute("TRUNCATE celery_taskmeta")


def _send(count: int) -> None:
    with stock.app.connection_for_write() as connection, connection.Producer() as producer:
        for _ in range(count):
            stock.echo.apply_async(producer=producer)


def _wait_for(count: int, *, within: float) -> None:
    def stored() -> int:
        with stage.connection() as database:
            there = database.execute("SELECT to_regclass('celery_taskmeta')").fetchone()
            if there is None or there[0] is None:
                return 0
            row = database.execute("SELECT count(*) FROM celery_taskmeta").fetchone()
            return row[0] if row else 0

    stage.wait(
        lambda: stored() >= count,
        within=within,
        missing=lambda: f"{stored()} of {count} of stock's results were stored",
    )


def _results() -> list[tuple[float, float, float]]:
    """Per result the instants at which it was due (0 where no entry sent it), started and stored, in epoch seconds."""
    query = "SELECT result, extract(epoch FROM date_done AT TIME ZONE 'UTC')::float FROM celery_taskmeta"
    with stage.connection() as database:
        found = [(json.loads(result), stored) for result, stored in database.execute(query)]
    return [(result["slot"] or 0.0, result["started_at"], stored) for result, stored in found]
