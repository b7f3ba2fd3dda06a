"""The worker process: `celery -A workers.main:celery_app worker`. Also what Flower loads to watch it."""

import gc
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import uuid4

from billiard.process import current_process
from celery import signals
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import state
from prometheus_client import Metric

from app import db, exporter, logs, metrics, settings, traces
from app.broker import celery_app, declare
from workers.execution import RecordedTask
from workers.heartbeat import Clerk, Heartbeat

BUILT_IN = (
    "workers.calls",
    "workers.targets.canary",
    "workers.targets.debug",
    "workers.targets.http",
    "workers.targets.mail",
    "workers.targets.webhook",
)
ON_REQUEST = ("workers.targets.shell",) if settings.load().PUNCTUAL_SHELL else ()

celery_app.task_cls = RecordedTask
celery_app.conf.update(
    imports=("workers.packs", *BUILT_IN, *ON_REQUEST, *settings.load().PUNCTUAL_TASK_MODULES),
    worker_consumer="workers.consumer:PatientConsumer",
    worker_autoscaler="workers.autoscaler:Autoscaler",
    # whoever calls is answered; the messages of runs say that they want no answer
    result_backend="rpc://",
    task_ignore_result=False,
)

# what happens to running tasks when the connection is lost is set on purpose, see app/broker.py
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning, module="celery")

_heartbeat = Heartbeat()
_threads = (_heartbeat, Clerk())


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    logs.configure()


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _name(instance: Any, **_: Any) -> None:
    """Makes the node's name unique: a name that is used twice locks the second worker out of its own queue."""
    name, _, host = instance.hostname.partition("@")
    instance.hostname = f"{name}-{uuid4().hex[:6]}@{host}"


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _declare(**_: Any) -> None:
    declare()


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _prepare_to_fork(**_: Any) -> None:
    """What is imported by now stays: no collection is to look at it again, which in a child copies what it shares."""
    db.plan_once()
    db.prepare()
    gc.collect()
    gc.freeze()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin(**_: Any) -> None:
    """The parent's connections are none of a child's; what it counts goes on where the last one in its place ended."""
    db.forget()
    metrics.become(f"child{current_process().index}")
    traces.start("worker")


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    traces.stop()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    _heartbeat.consumer = sender
    for thread in _threads:
        thread.start()
    exporter.serve("worker", partial(_gauges, sender))
    traces.start("worker")


def _gauges(consumer: Any) -> Iterable[Metric]:
    """What this worker is at this moment."""
    pool = consumer.pool
    yield exporter.gauge("punctual_worker_processes", "Processes of this worker.", getattr(pool, "num_processes", 0))
    yield exporter.gauge("punctual_worker_busy", "Messages that its processes work on.", len(state.active_requests))
    waiting = len(state.reserved_requests) - len(state.active_requests)
    yield exporter.gauge("punctual_worker_fetched", "Messages that wait for one of its processes.", max(0, waiting))


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    for thread in _threads:
        thread.stopping.set()
    for thread in _threads:
        if thread.is_alive():
            thread.join(timeout=5)
