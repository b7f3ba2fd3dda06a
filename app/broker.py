"""The Celery app and its queues.

On RabbitMQ the queues are quorum queues with a dead-letter queue behind them. On the embedded Redis the same code runs
without what only AMQP has.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP, Queues
from kombu import Connection, Exchange, Queue

from app import errors, pulse, settings
from app.messages import CALLS_QUEUE, DEAD_LETTERS, DEFAULT_QUEUE

LOOK_TIMEOUT = 2.0
"""Seconds for a try to connect, where something else waits for it."""

CONNECT_FOR = 3.0
"""Seconds after which no further address is tried: above LOOK_TIMEOUT, so that a silent one leaves time for another."""

GOODBYE = 0.3
"""Seconds for a broker's own goodbye where a connection is closed."""

BOUNDED = {"read_timeout": 3, "write_timeout": 3, "socket_timeout": 3}
"""Seconds for each wait there."""

ANSWER_WITHIN = 6.0
"""Seconds after which a beat's watchdog takes such a wait for a hang: a busy machine is late to see that it is over."""

CONNECT_WITHIN = 12.0
"""The same for one try to connect, which may go through several addresses behind one name."""

CONSUMER_TIMEOUT_MS = 26 * 3600 * 1000
"""Above the longest timeout of a task, so that RabbitMQ does not take a long run away from its worker."""

REDIS_REDELIVERY = 6 * 3600
"""Seconds after which the Redis transport hands an unacknowledged message out again, finished or not. A run that
was lost with its worker is sent again by the chores in seconds; an ordinary Celery call waits this long."""

log = logging.getLogger(__name__)


def queue(name: str) -> Queue:
    """The queue of that name as every process declares it. Arguments of a queue never change in place."""
    if name == DEAD_LETTERS:
        return Queue(name, exchange="", routing_key=name, queue_arguments={"x-queue-type": "quorum"})
    if name == CALLS_QUEUE:
        # as Celery declares a queue that it is only told the name of: other apps declare it too, see decision 16
        return Queue(name, Exchange(name, type="direct"), routing_key=name)
    return Queue(
        name,
        exchange="",
        routing_key=name,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,  # a message that comes back this often is parked, not dropped
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DEAD_LETTERS,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # at-least-once dead lettering asks for it
            "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
        },
    )


class _Queues(Queues):  # type: ignore[misc]
    """A queue that nobody declared before is declared as ours are, so that its arguments never differ."""

    def new_missing(self, name: str) -> Queue:
        return queue(name)


class _AMQP(AMQP):  # type: ignore[misc]
    queues_cls = _Queues


def _transport_options(url: str) -> dict[str, Any]:
    if url.startswith("amqp"):
        # without confirms, but for what Publisher sends: a worker's loop would wait for one at each flush of its events
        return {"read_timeout": 30, "write_timeout": 5}
    return {
        "visibility_timeout": REDIS_REDELIVERY,
        "global_keyprefix": "punctual:broker:",
        "priority_steps": [0, 5],
        "queue_order_strategy": "priority",
        "socket_timeout": 10,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
    }


def _configure(config: settings.Settings) -> dict[str, Any]:
    url = config.BROKER_URL.get_secret_value()
    return {
        "broker_url": url,
        "broker_transport_options": _transport_options(url),
        "broker_connection_timeout": 3,
        "broker_heartbeat": 10,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "task_queues": [queue(DEFAULT_QUEUE), queue(CALLS_QUEUE)],
        "task_default_queue": DEFAULT_QUEUE,
        "task_default_exchange": "",
        "task_default_queue_type": "quorum",
        "task_create_missing_queues": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "event_serializer": "json",
        "enable_utc": True,
        "timezone": "UTC",
        # PostgreSQL is the record: Celery's own would be a second one
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "worker_prefetch_multiplier": 1,
        "worker_lost_wait": 2,
        "worker_proc_alive_timeout": 15,
        "worker_detect_quorum_queues": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Flower asks each worker for them as long as it runs; where nobody watches they only cost
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def _make_app() -> Celery:
    app = Celery("punctual", amqp=_AMQP, set_as_current=True)
    app.config_from_object(_configure(settings.load()))
    return app


celery_app = _make_app()


def declare() -> None:
    """Declares the dead-letter queue, which nobody consumes and so nobody else declares."""
    with celery_app.connection_for_write() as connection:
        connection.ensure_connection(interval_start=0.1, interval_step=0.2, interval_max=1)
        try:
            queue(DEAD_LETTERS)(connection.default_channel).declare()
        except connection.channel_errors as exc:
            log.error("queue %s cannot be declared, it is used as it is: %s", DEAD_LETTERS, exc)  # noqa: TRY400


def depth(name: str) -> int | None:
    """How many messages a queue holds that no worker has taken; None where it is not there."""
    with _look() as connection:
        return _depth(connection, name)


def depths(names: Iterable[str]) -> dict[str, int | None]:
    """The same of several queues, to be shown: None for all where the broker is away."""
    found: dict[str, int | None] = dict.fromkeys(names)
    try:
        with _look() as connection:
            for name in found:
                found[name] = _depth(connection, name)
    except Exception as exc:  # noqa: BLE001 - each transport has errors of its own
        log.warning("the broker is away, no depth of a queue can be shown: %r", exc)
    return found


@contextlib.contextmanager
def _look() -> Iterator[Connection]:
    """A connection of its own on which no wait is long."""
    connection = celery_app.connection_for_read(connect_timeout=LOOK_TIMEOUT, transport_options=BOUNDED)
    try:
        connect(connection)
        yield connection
    finally:
        leave(connection)


def connect(connection: Connection) -> None:
    """Tries each address that is given once, at once, and begins with none after CONNECT_FOR. Raises the transport's
    own errors."""
    sign()
    again = max(1, len(connection.alt)) - 1
    connection.ensure_connection(sign, max_retries=again, interval_start=0, timeout=CONNECT_FOR)


def waits(step: str, times: int = 1) -> None:
    """A wait begins that is as long as BOUNDED has it, or so many of them."""
    pulse.mark(step, times * ANSWER_WITHIN)


def sign(*_: Any) -> None:
    """A try to connect begins, the first or one after another failed. It goes through all addresses of a name."""
    pulse.mark("connecting to the broker", CONNECT_WITHIN)


def leave(connection: Connection) -> None:
    """Closes a connection with all that is on it. The broker may be silent, and is not waited for as at other times.
    Raises nothing."""
    waits("closing the connection to the broker")
    with contextlib.suppress(Exception), _impatient(connection):
        connection.collect()


@contextlib.contextmanager
def _impatient(connection: Connection) -> Iterator[None]:
    wire = getattr(connection.connection, "transport", None) if connection.connected else None
    with wire.having_timeout(GOODBYE) if wire is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def channel_of(connection: Connection) -> Iterator[Any]:
    """A channel for one question. Where the connection fails it is not closed, which would be one wait more."""
    waits("opening a channel")
    channel = connection.channel()
    waits("asking the broker", 2)  # where the answer is no, the driver opens the channel again before it says so
    try:
        yield channel
    except connection.channel_errors:
        _close(channel)
        raise
    _close(channel)


def _close(channel: Any) -> None:
    waits("closing a channel")
    channel.close()


def _depth(connection: Connection, name: str) -> int | None:
    try:
        with channel_of(connection) as channel:
            return int(queue(name)(channel).queue_declare(passive=True).message_count)
    except connection.channel_errors:
        return None


def ping() -> None:
    """Raises Unavailable where the broker does not answer."""
    try:
        with _look():
            pass
    except Exception as exc:
        raise errors.Unavailable("The broker is away.") from exc
