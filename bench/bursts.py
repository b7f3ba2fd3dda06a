"""Many one-time tasks due in one instant: how long until the last was fired, published, started and finished.

And a backlog of them, which a worker finds when it starts: how many runs it records per second.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from app import clock
from bench import load
from bench.figures import Figure

UNPACKED = {"PUNCTUAL_PACKS": "off"}
MIRRORED_PER_SECOND = 1_000
"""What mirroring is allowed to take of the time before the slot."""

BACKLOG = 20_000


def burst() -> list[Figure]:
    return _burst(10_000, "burst of 10,000")


def burst_50k() -> list[Figure]:
    return _burst(50_000, "burst of 50,000")


def burst_100k() -> list[Figure]:
    return _burst(100_000, "burst of 100,000")


def burst_unpacked() -> list[Figure]:
    return _burst(10_000, "burst of 10,000, unpacked", UNPACKED)


def backlog() -> list[Figure]:
    return _backlog("backlog of 20,000: recorded", beats=UNPACKED)


def backlog_unpacked() -> list[Figure]:
    return _backlog("backlog of 20,000, each alone: recorded", beats=UNPACKED, worker=UNPACKED)


def backlog_packed() -> list[Figure]:
    return _backlog("backlog of 20,000, in packs: recorded")


def ahead(count: int) -> datetime:
    """A whole second that is far enough ahead to register `count` tasks for it."""
    return clock.now().replace(microsecond=0) + timedelta(seconds=6 + count / MIRRORED_PER_SECOND)


def _burst(count: int, name: str, env: Mapping[str, str] | None = None) -> list[Figure]:
    with load.running(env=env):
        load.warm_up()
        slot = ahead(count)
        load.fill([slot] * count)
        load.wait_until_mirrored(before=slot)
        left = (slot - clock.now()).total_seconds()
        load.wait_for("succeeded", count, since=slot, within=left + 60 + count / 100)
        runs = load.stamps(slot)
    # a run that a worker claimed before beat had noted its sending keeps no stamp of the sending
    last = {stamp: max((run[stamp] for run in runs if run[stamp] is not None), default=None) for stamp in load.STAMPS}
    return [
        Figure(what=f"{name}: last {stamp.removesuffix('_at')}", value=value, unit="s")
        for stamp, value in last.items()
        if value is not None
    ]


def _backlog(
    name: str, *, beats: Mapping[str, str] | None = None, worker: Mapping[str, str] | None = None
) -> list[Figure]:
    """The runs are fired while no worker is there, so that they all wait when it starts. Its start is not counted.

    What beats do not pack travels in messages of its own; a worker that packs fetches such together.
    """
    with load.running(beats=1, workers=0, env=beats):
        with load.running(beats=0, env=worker):
            load.warm_up()
        slot = ahead(BACKLOG)
        load.fill([slot] * BACKLOG)
        load.wait_until_mirrored(before=slot)
        left = (slot - clock.now()).total_seconds()
        load.wait_for("queued", BACKLOG, since=slot, within=left + 60)
        with load.running(beats=0, env=worker):
            load.wait_for("succeeded", BACKLOG, since=slot, within=300)
        runs = load.stamps(slot)
    took = max(run["finished_at"] for run in runs) - min(run["started_at"] for run in runs)
    return [Figure(what=name, value=BACKLOG / took, unit="runs/s")]
