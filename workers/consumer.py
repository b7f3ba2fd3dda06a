"""Celery's consumer with a few habits changed: it reconnects at once, consumes what queues it can have, parks what it
cannot read, and when it is to stop gives back at once what has not started.

Celery waits 2, 4, 6 … 30 s between tries, hard-coded; it acknowledges a message that it cannot decode, which
loses it; and it holds what it has fetched until its last run has ended.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.common import ignore_errors

from app import broker, messages
from app.messages import CALLS_QUEUE, DEAD_LETTERS, Ticket
from app.states import Reason
from workers import execution, heartbeat, pool, stopping
from workers.gathering import Gatherer

LOOK_EVERY = 5
"""Seconds between two looks for queues that could not be consumed."""

RECONNECT = {"interval_start": 0.1, "interval_step": 0.2, "interval_max": 1}
"""Seconds between tries to reach the broker."""

NAMED = {"content_type", "content_encoding", "application_headers", "priority"}
"""Properties of a message that kombu gives by names of their own."""

EVENTS_EVERY = 0.25
"""Seconds for which events of runs are kept, to be sent together: each sending costs as much as a run does."""

EVENTS_TOGETHER = 500

FORGET_EVERY = 1_000
"""Messages between two looks for time limits of runs that have ended."""

ABOUT_THE_MESSAGE = (LookupError, TypeError, ValueError, AttributeError)
"""What a message that a stranger sent makes Celery stumble over."""

log = logging.getLogger(__name__)


class PatientConsumer(Consumer):  # type: ignore[misc]
    """The consumer of every worker."""

    received = 0

    gatherer: Gatherer | None = None

    events_at = 0.0
    """When the events that are kept are sent, on the monotonic clock."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """Without Celery's delayed delivery, which declares 28 queues: no message of ours carries an ETA."""

        default_steps = tuple(step for step in Consumer.Blueprint.default_steps if "delayed_delivery" not in step)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # workers need not know each other: less talk, and a start that is a second quicker
        super().__init__(*args, **kwargs | {"without_mingle": True, "without_gossip": True})
        self.missing: set[str] = set()
        """Queues that are to be consumed here and cannot be."""

    def connect(self) -> Any:
        """Connects. A queue that is not to be had keeps this worker from no other.

        It may be somebody else's making, of other arguments, or lie on a node of a cluster that is away.
        """
        conn = super().connect()
        queues = self.app.amqp.queues
        for name in {*queues.consume_from} | self.missing:
            if self._is_there(conn, name):
                queues.select_add(queues[name])
            else:
                queues.deselect(name)
        self._look_again()
        return conn

    def look_for_missing(self) -> None:
        """Consumes the queues that are there by now."""
        if not self.connection:
            return
        for name in tuple(self.missing):
            if self._is_there(self.connection, name):
                self.add_task_queue(name)
        self._look_again()

    def _look_again(self) -> None:
        if self.missing:
            self.timer.call_after(LOOK_EVERY, self.look_for_missing)

    def _is_there(self, conn: Any, name: str) -> bool:
        """Whether the queue can be consumed; asked on a channel of its own, as a refusal closes it."""
        try:
            with conn.channel() as channel:
                broker.queue(name)(channel).declare()
        except conn.channel_errors as exc:
            log.error("queue %s cannot be consumed, it is looked for again every %d s: %s", name, LOOK_EVERY, exc)  # noqa: TRY400
            self.missing.add(name)
            return False
        self.missing.discard(name)
        return True

    def ensure_connected(self, conn: Any) -> Any:
        failing = False

        def say_once(exc: Exception, _interval: float) -> None:
            nonlocal failing
            if not failing:
                log.warning("the broker is away, this worker tries each second: %s", exc)
            failing = True

        connected = conn.ensure_connection(say_once, None, callback=maybe_shutdown, **RECONNECT)
        self.first_connection_attempt = False
        if failing:
            log.info("the broker is back")
        return connected

    def on_send_event_buffered(self) -> None:
        """Celery's hook for each event that is kept, where somebody watches: it would send it with the next turn."""
        now = time.monotonic()
        if now >= self.events_at:  # a lost connection clears the timer: what that forgot, the next event makes good
            self.events_at = now + EVENTS_EVERY
            self.event_dispatcher.buffer_limit = EVENTS_TOGETHER
            self.timer.call_after(EVENTS_EVERY, self._flush_events)

    def on_close(self) -> None:
        """Celery's hook where the connection is lost or the worker stops: it forgets what no process has begun."""
        if self.gatherer is not None:
            self.gatherer.forget()
        pool.settle(self.pool._pool)  # noqa: SLF001 - Celery's own wraps billiard's
        super().on_close()

    def close(self) -> None:
        """Celery's first word to a consumer whose worker is to stop."""
        if state.should_terminate:  # a cold shutdown, which has ended everything already
            return
        if self.task_consumer is not None:
            ignore_errors(self, self.task_consumer.cancel)
        if self.gatherer is not None:
            self.gatherer.stop()
        for request in stopping.begin(self.pool._pool):  # noqa: SLF001
            request.reject(requeue=True)

    def cancel_task_queue(self, queue: Any) -> None:
        """What this worker is told to consume no more is not fetched ahead either."""
        super().cancel_task_queue(queue)
        if self.gatherer is not None:
            self.gatherer.cease()

    def create_task_handler(self, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(**kwargs)
        gatherer = self.gatherer = Gatherer(self, handle)

        def receive(message: Any) -> None:
            self.received += 1
            gatherer.notice(message)
            if self.received % FORGET_EVERY == 0:
                pool.forget_timers(self.timer)
            try:
                handle(message)
            except ABOUT_THE_MESSAGE as exc:
                # the Redis transport counts some of these as its connection's and would try the same again, for ever
                self.park(message, exc)

        return receive

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self.park(message, exc)

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        self.park(message, exc)

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        self.park(message, ValueError("not a task message"))

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        self.park(message, LookupError(f"no target {message.headers.get('task')!r} on this worker"))

    def park(self, message: Any, exc: Exception) -> None:
        """Puts a message into the dead-letter queue with its bytes, and fails the run that it stood for."""
        log.error("a message is parked in %s: %s: %s", DEAD_LETTERS, type(exc).__name__, exc)
        redis = broker.celery_app.connection().transport_cls.startswith("redis")
        if redis or message.delivery_info.get("routing_key") == CALLS_QUEUE:
            _copy(message, DEAD_LETTERS)
            message.ack_log_error(log, self.connection_errors)
        else:
            message.reject_log_error(log, self.connection_errors)
        headers = message.headers if isinstance(message.headers, dict) else {}
        ticket = Ticket.read(headers.get(messages.HEADER))
        if ticket is not None:
            error = {"type": type(exc).__name__, "message": str(exc), "traceback": None}
            heartbeat.defer(lambda: execution.reject(ticket, self.hostname, Reason.REJECTED, error))


def _copy(message: Any, queue: str) -> None:
    """What a dead-letter exchange does, for a transport that has none, and for the queue of calls."""
    channel = message.channel
    others = {name: value for name, value in message.properties.items() if name not in NAMED}
    copy = channel.prepare_message(
        message.body, 0, message.content_type, message.content_encoding, message.headers, others
    )
    channel.basic_publish(copy, exchange="", routing_key=queue)  # the broker takes the copy before the ack
