"""Confirmed publishing in batches: a run counts as sent only when the broker has confirmed it."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any
from uuid import UUID

from amqp import spec
from amqp.method_framing import frame_writer
from celery import Celery
from kombu import Connection
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import dumps

from app import broker, failpoints, messages, metrics, pulse, settings, traces
from app.messages import CALLS_QUEUE, Message, Pack, Parcel

CONFIRM_TIMEOUT = 3.0
"""Seconds in which the broker must confirm a batch."""

ASK_AGAIN = 1.0
"""Seconds between two questions to a broker that does not answer: where it is silent each takes LOOK_TIMEOUT, in
which other chores wait."""

TOGETHER = 64 * 1024
"""Bytes that are written at once."""

PUBLISH = "Bssbb"
"""The arguments of AMQP's `basic.publish`: reserved, exchange, routing key, mandatory, immediate."""
MANDATORY = True

SAY_AGAIN = 60.0
"""Seconds between two complaints about the same queue of another app."""

log = logging.getLogger(__name__)


class Publisher:
    """Sends messages and says which of them the broker has taken. One thread uses it, on one channel.

    py-amqp's own confirm waits for any ack without looking whose it is, so tags are counted here; and a
    broker confirms what it could route nowhere, so messages are mandatory and a returned one is not counted.
    """

    def __init__(self, app: Celery = broker.celery_app) -> None:
        self.app = app
        self.origin = f"{os.getpid()}@{socket.gethostname()}"
        self.connection: Connection | None = None
        self.channel: Any = None
        self.gathered: _Gathered | None = None
        self.declared: set[str] = set()
        self.tag = 0
        self.unconfirmed: dict[int, Parcel] = {}
        self.refused: set[UUID] = set()
        self.ask_at = 0.0
        """When to ask a broker again that did not answer, on the monotonic clock."""
        self.silent_until: dict[str, float] = {}
        self.undeclared: dict[str, str] = {}
        """Queues that cannot be declared, and why: their runs stay pending."""

    @cached_property
    def is_amqp(self) -> bool:
        return settings.load().BROKER_URL.get_secret_value().startswith("amqp")

    def reaches(self) -> bool:
        """Whether the broker answers; once it did not, it is asked again after ASK_AGAIN. Who takes runs out of the
        outbox owns their sending for a while: one that could send none leaves them to the others.

        On Redis the question is only whether there was a connection.
        """
        if time.monotonic() < self.ask_at:
            return False
        was_away = self.ask_at > 0
        try:
            self._open()
            broker.waits("asking the broker")
            if self.is_amqp:
                self.channel.confirm_select()  # once more: nothing changes, and it is answered
        except Exception as exc:  # noqa: BLE001 - each transport has errors of its own
            if not was_away:
                log.warning("the broker does not answer, what waits to be sent is left to the other beats: %r", exc)
            self.close()
            self.ask_at = time.monotonic() + ASK_AGAIN
            return False
        if was_away:
            log.info("the broker answers again")
        self.ask_at = 0.0
        return True

    def publish(self, batch: Sequence[Parcel]) -> list[Parcel]:
        """Sends the batch; returns the parcels that the broker has confirmed. Never raises: what is not
        returned was perhaps sent, perhaps not, and stands as pending until it is sent again."""
        sent: list[Parcel] = []
        pulse.mark("publishing")
        try:
            self._open()
            there = {name: self._declare(name) for name in {parcel.queue for parcel in batch}}
            with self._together():
                for parcel in batch:
                    pulse.mark("publishing")
                    if there[parcel.queue] and self._send(parcel):
                        sent.append(parcel)
            failpoints.reached("published")
            self._confirm()
        except Exception as exc:  # noqa: BLE001 - the chore publish_pending sends again what stays pending
            log.warning("publishing failed, the runs stay pending and are sent again: %r", exc)
            unsure = {parcel.id for parcel in self.unconfirmed.values()}
            refused = self.refused
            self.close()
            metrics.MESSAGES.labels("none").inc(len(unsure))
            return _taken(parcel for parcel in sent if parcel.id not in unsure | refused)
        return _taken(parcel for parcel in sent if parcel.id not in self.refused)

    def close(self) -> None:
        """Drops the channel with its connection: after an error a late ack could confirm the wrong message."""
        connection, self.connection, self.channel, self.gathered = self.connection, None, None, None
        self.declared.clear()
        self.unconfirmed.clear()
        if connection is not None:
            broker.leave(connection)

    def _open(self) -> None:
        self.refused = set()
        if self.connection is not None and self.connection.connected:
            return
        self.close()
        self.connection = self.app.connection_for_write(
            connect_timeout=broker.LOOK_TIMEOUT, transport_options=broker.BOUNDED
        )
        broker.connect(self.connection)
        self.channel = self._channel()

    def _channel(self) -> Any:
        assert self.connection is not None
        broker.waits("opening a channel")
        channel = self.connection.channel()
        self.tag = 0
        if self.is_amqp:
            broker.waits("asking for confirms")
            channel.confirm_select()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
            channel.events["basic_return"].add(self._on_return)
            self.gathered = _Gathered(self.connection.connection)
        return channel

    def _declare(self, name: str) -> bool:
        """Whether the queue is there. One that cannot be declared takes its own messages only."""
        if name in self.declared or _is_others(name):
            return True
        assert self.connection is not None
        try:
            with broker.channel_of(self.connection) as channel:
                broker.queue(name)(channel).declare()
        except self.connection.channel_errors as exc:
            log.warning("queue %s cannot be declared, its runs stay pending: %s", name, exc)
            self.undeclared[name] = str(exc)
            return False
        self.undeclared.pop(name, None)
        self.declared.add(name)
        return True

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Within it what is sent is written by the dozens: a write for each, and a look for what the broker may have to
        say, cost as much as half of what else is done for a message. RabbitMQ keeps what it has to say for that long.
        """
        if self.gathered is None:
            yield
            return
        driver = self.gathered.driver
        usual, driver.frame_writer = driver.frame_writer, self.gathered.write_frame
        try:
            yield
            self.gathered.flush()
        finally:
            driver.frame_writer = usual

    def _send(self, parcel: Parcel) -> bool:
        """Whether it went out. One that cannot be put into words is left behind, its neighbours go."""
        try:
            body, headers = worded(parcel, self.origin) if isinstance(parcel, Pack) else self._envelope(parcel)
            for message in parcel.messages:
                traces.sent(message.ticket, parcel.queue, headers)
            content_type, encoding, payload = dumps(body, serializer="json")
        except (EncodeError, TypeError, ValueError):
            log.exception("%s cannot be sent, it stays pending", parcel.id)
            return False
        properties = {"delivery_mode": 2, "correlation_id": headers["id"], "reply_to": ""}
        if self.is_amqp and _is_external(parcel):
            # not Celery's `expires`, for which a worker remembers the id, and refuses the next attempt too
            properties["expiration"] = str(int(messages.EXTERNAL_GRACE.total_seconds() * 1000))
        prepared = self.channel.prepare_message(
            payload, self._priority(parcel), content_type, encoding, headers, properties
        )
        if not self.is_amqp:
            self.channel.basic_publish(prepared, exchange="", routing_key=parcel.queue)
            return True
        self.tag += 1
        self.unconfirmed[self.tag] = parcel
        # as its `basic_publish` does, which asks the socket first whether the broker has said something
        self.channel.send_method(spec.Basic.Publish, PUBLISH, (0, "", parcel.queue, MANDATORY, False), prepared)
        return True

    def _envelope(self, message: Message) -> tuple[Any, dict[str, Any]]:
        """The body and headers of an ordinary Celery message with our ticket beside them."""
        made = self.app.amqp.as_task_v2(
            str(message.ticket.run),
            message.target,
            message.args,
            message.kwargs,
            soft_time_limit=message.timeout.total_seconds(),
            time_limit=(message.timeout + messages.HARD_LIMIT_GRACE).total_seconds(),
            retries=message.ticket.attempt - 1,
            origin=self.origin,
            **_answering(message) if _is_external(message) else {"ignore_result": True},
        )
        return made.body, made.headers | {messages.HEADER: message.ticket.encode()}

    def _priority(self, parcel: Parcel) -> int:
        """A task's priority, 0 to 9 with 5 as usual, in the transport's own terms.

        RabbitMQ 4 gives quorum queues two classes and counts above 4 as high; on Redis a lower number is
        sooner, and 0 is the only step that every app reads.
        """
        priority = parcel.priority
        high = priority > 5  # noqa: PLR2004 - the usual one
        if self.is_amqp:
            return priority if high else min(priority, 4)
        return 0 if high or _is_external(parcel) else 5

    def _confirm(self) -> None:
        """Waits until each message sent on this channel is confirmed or refused. Raises after CONFIRM_TIMEOUT."""
        broker.waits("waiting for confirms")
        deadline = time.monotonic() + CONFIRM_TIMEOUT
        while self.unconfirmed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise OperationalError(f"{len(self.unconfirmed)} messages were not confirmed")
            assert self.connection is not None
            self.connection.drain_events(timeout=left)

    def _settled(self, tag: int, multiple: bool) -> Iterator[Parcel]:  # noqa: FBT001 - the protocol's own word
        for settled in [t for t in self.unconfirmed if t <= tag] if multiple else [tag]:
            parcel = self.unconfirmed.pop(settled, None)
            if parcel is not None:
                yield parcel

    def _on_ack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001
        for _ in self._settled(tag, multiple):
            pass

    def _on_nack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001
        refused = {parcel.id for parcel in self._settled(tag, multiple)}
        self.refused |= refused
        metrics.MESSAGES.labels("refused").inc(len(refused))
        log.warning("the broker refused messages, their runs stay pending")

    def _on_return(self, _exc: Exception, _exchange: str, name: str, returned: Any) -> None:
        """Unroutable: the queue is gone. The broker confirms such a message all the same, right after this."""
        self.refused.add(UUID(returned.headers["id"]))
        metrics.MESSAGES.labels("returned").inc()
        self.declared.discard(name)
        if _is_others(name):
            if time.monotonic() > self.silent_until.get(name, 0):
                log.warning("queue %s is not there, its runs stay pending until whoever consumes it makes it", name)
                self.silent_until[name] = time.monotonic() + SAY_AGAIN
        else:
            log.warning("queue %s is gone, it is declared again with the next batch", name)


class _Gathered:
    """Stands for the transport of one of py-amqp's connections, and hands it the frames of messages by the dozens."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.write_frame = frame_writer(driver, self)
        self.frames = bytearray()

    def write(self, frame: memoryview | bytes) -> None:
        self.frames += frame  # a copy: the driver uses that memory again
        if len(self.frames) >= TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Raises where a broker that reads no more does not take all of it in time. The driver's own bound is one for
        each part that goes out: the whole would take longer than a beat may stand still."""
        broker.waits("publishing")
        frames, self.frames = self.frames, bytearray()
        with self.driver.transport.having_timeout(broker.BOUNDED["write_timeout"]):
            self.driver.transport.write(frames)


def worded(pack: Pack, origin: str) -> tuple[Any, dict[str, Any]]:
    """The body and headers of a Celery message that carries many runs. Each of them has a soft limit of its own,
    which its worker sets; the last one to begin bounds the whole."""
    longest = messages.BEGIN_WITHIN + pack.timeout + messages.HARD_LIMIT_GRACE
    made = broker.celery_app.amqp.as_task_v2(
        str(pack.id),
        messages.PACK,
        [pack.encode()],
        time_limit=longest.total_seconds(),
        ignore_result=True,
        origin=origin,
        argsrepr=f"{len(pack.messages)} runs of {pack.target}",
        kwargsrepr="{}",
    )
    return made.body, made.headers


def _taken(parcels: Iterable[Parcel]) -> list[Parcel]:
    """Counts what the broker has taken."""
    taken = list(parcels)
    metrics.MESSAGES.labels("confirmed").inc(len(taken))
    return taken


def _is_others(name: str) -> bool:
    """Whether whoever consumes a queue declares it: another app, or our workers that of the calls, to which nobody but
    the canary sends a run. A beat may not declare that one, nor needs to."""
    return name == CALLS_QUEUE or name in settings.load().external_queues


def _is_external(parcel: Parcel) -> bool:
    return parcel.queue in settings.load().external_queues


def _answering(message: Message) -> dict[str, Any]:
    """What has another app's worker, which knows nothing of us, answer for a run."""
    amqp = settings.load().BROKER_URL.get_secret_value().startswith("amqp")
    # over the exchange that app needs no right to declare our queue; Redis would forget the binding
    to = {"exchange": CALLS_QUEUE, "routing_key": CALLS_QUEUE} if amqp else {"queue": CALLS_QUEUE}
    return {
        "callbacks": [messages.answer_with(messages.RECORD_SUCCESS, message.ticket, to)],
        "errbacks": [messages.answer_with(messages.RECORD_FAILURE, message.ticket, to)],
        "ignore_result": None,  # as that app has it
    }
