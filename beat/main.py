"""The beat process: `celery -A beat.main:celery_app beat`."""

import gc
import signal
from types import FrameType
from typing import Any

from celery.signals import beat_init, setup_logging

from app import logs, settings
from app.broker import celery_app
from beat import node

YOUNG = 50_000
"""Objects that are made before Python looks for garbage. A firing makes that many and keeps them until it is over: by
Python's own threshold of 700 all of them are looked through again and again, which took a sixth of a beat's time."""

celery_app.conf.update(
    beat_scheduler="beat.scheduler:PunctualScheduler",
    beat_max_loop_interval=1,
    beat_enable_remote_control=True,
    beat_remote_control_max_tick_age=5,
    # RedBeat would fall back to the broker
    redbeat_redis_url=settings.load().REDIS_URL.get_secret_value(),
    redbeat_redis_options={},
    redbeat_lock_timeout=4,
)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    logs.configure()


@beat_init.connect  # type: ignore[untyped-decorator]
def _name(sender: Any, **_: Any) -> None:
    """The name by which it answers is the one that `GET /cluster` shows."""
    sender.hostname = node.NAME


@beat_init.connect  # type: ignore[untyped-decorator]
def _collect_rarely(**_: Any) -> None:
    """What is imported by now stays: no collection is to look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


@beat_init.connect  # type: ignore[untyped-decorator]
def _stop_between_ticks(sender: Any, **_: Any) -> None:
    """Celery's own handler would close the scheduler in the middle of a tick."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        sender.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
