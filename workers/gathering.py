"""Fetching ahead: where quick runs wait one by one, a worker fetches many of them at once and packs them itself.

A message of its own costs more than a quick run does: Celery's handling, and two commits. Beats pack what falls due
together; what fell due one by one and waited is packed here, by the same rules, and worked through in the same way.

Only quick runs are fetched ahead. A slow one that is found among them goes back to the broker at once, so that a worker
with nothing to do may have it (decision 44).
"""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import kombu
from kombu.common import ignore_errors
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import dumps

from app import messages, packs, publishing, settings
from app.messages import CALLS_QUEUE, Message, Pack, Ticket
from workers import durations

STREAK = 32
"""After so many quick runs in a row the broker is asked how many wait."""

ASK_EVERY = 1.0
"""Seconds between two such questions."""

AHEAD = 64
"""Messages that are fetched ahead for each process."""

UNDER_WAY = 2
"""Packs of them for each process: one that it works through, and the next."""

TOGETHER = 0.005
"""Seconds for which a few wait for others."""

QUIET = 1.0
"""Seconds without a message after which nothing is fetched ahead any more."""

PAUSE = 5.0
"""Seconds for which nothing is fetched ahead after something else than a quick run was found there."""

RETURNS = 3
"""How often a message may have come back before it is kept: RabbitMQ parks one that comes back too often."""

log = logging.getLogger(__name__)


class Gatherer:
    """Of one worker's consumer, in its loop. `handle` is what does with a message as Celery does."""

    def __init__(self, consumer: Any, handle: Callable[[Any], None]) -> None:
        self.consumer = consumer
        self.handle = handle
        self.channel: Any = None
        """A channel of its own, as a prefetch holds for a channel's consumers; until the connection is lost."""
        self.fetching: kombu.Consumer | None = None
        self.streak = 0
        self.paused_until = 0.0
        self.heard_at = 0.0
        self.collected: list[tuple[Message, Any]] = []
        """What was fetched and not packed yet, with the delivery of each."""
        self.under_way: set[_Bundle] = set()
        self.flushing = False

    @property
    def processes(self) -> int:
        return max(1, int(self.consumer.pool.num_processes))

    def notice(self, delivery: Any) -> None:
        """A message came the usual way. Where it is one of many quick ones, the broker is asked for more."""
        if self.fetching is not None:
            return
        self.streak = self.streak + 1 if is_quick(delivery) else 0
        if self.streak >= STREAK and time.monotonic() > self.paused_until:
            self.streak = 0
            self.paused_until = time.monotonic() + ASK_EVERY
            self.consumer.hub.call_soon(partial(self.begin, delivery.delivery_info["routing_key"]))

    def begin(self, queue: str) -> None:
        """Fetches ahead from now on, where more waits in that queue than the processes would soon be done with."""
        connection = self.consumer.connection
        if self.fetching is not None or not connection or connection.transport.driver_type != "amqp":
            return
        queues = [each for name, each in self.consumer.app.amqp.queues.consume_from.items() if name != CALLS_QUEUE]
        try:
            self.channel = self.channel or connection.channel()
            if self.channel.queue_declare(queue, passive=True).message_count < AHEAD:
                return
            self.channel.basic_qos(0, AHEAD * self.processes, a_global=False)
            self.fetching = kombu.Consumer(
                self.channel,
                queues,
                on_message=self.take,
                auto_declare=False,
                accept=self.consumer.app.conf.accept_content,
            )
            self.fetching.consume()
        except connection.channel_errors as exc:  # a queue that is gone; the usual consumer says so too
            log.warning("nothing is fetched ahead: %s", exc)
            self.forget()
            self.paused_until = time.monotonic() + PAUSE
            return
        log.info("quick runs wait one by one, they are fetched and packed together")
        self.heard_at = time.monotonic()
        self.consumer.timer.call_after(QUIET, self.look)

    def take(self, delivery: Any) -> None:
        """A message was fetched ahead."""
        self.heard_at = time.monotonic()
        message = read(delivery)
        if message is None:
            self.refuse(delivery)
        else:
            self.collected.append((message, delivery))
            self.flush_soon()

    def refuse(self, delivery: Any) -> None:
        """Gives back what is not to wait here. First no more is fetched, or it would come right back."""
        self.paused_until = time.monotonic() + PAUSE
        self.cease()
        if (delivery.headers or {}).get("x-delivery-count", 0) >= RETURNS:
            self.handle(delivery)
        else:
            delivery.reject_log_error(log, self.consumer.connection_errors, requeue=True)

    def look(self) -> None:
        """Ends it when nothing came for a while."""
        if self.fetching is None:
            return
        if time.monotonic() > self.heard_at + QUIET:
            self.cease()
        else:
            self.consumer.timer.call_after(QUIET, self.look)

    def cease(self) -> None:
        """Fetches no more. What was fetched is worked off; its channel stays open for that."""
        fetching, self.fetching, self.streak = self.fetching, None, 0
        if fetching is not None:
            ignore_errors(self.consumer.connection, fetching.cancel)

    def stop(self) -> None:
        """The worker is to stop: what is not packed yet goes back."""
        self.cease()
        collected, self.collected = self.collected, []
        for _, delivery in collected:
            delivery.reject_log_error(log, self.consumer.connection_errors, requeue=True)

    def forget(self) -> None:
        """The connection is lost, and with it all that was fetched: the broker hands it out again."""
        self.channel = self.fetching = None
        self.collected.clear()
        self.under_way.clear()
        self.streak = 0

    def flush_soon(self) -> None:
        """A few wait for others for a moment, many do not."""
        if len(self.collected) >= packs.FEW:
            self.flush()
        elif not self.flushing:
            self.flushing = True
            self.consumer.timer.call_after(TOGETHER, self.flush)

    def flush(self) -> None:
        """Packs what was collected, the oldest first, as long as processes are in want of it."""
        self.flushing = False
        while self.collected and len(self.under_way) < UNDER_WAY * self.processes:
            pack, deliveries = self._take_pack()
            bundle = _Bundle(deliveries, self._settled)
            self.under_way.add(bundle)
            self.handle(bundle.delivery(pack))

    def _take_pack(self) -> tuple[Pack, list[Any]]:
        """The oldest and what may go with it. Of a run that was sent twice the second message waits for another pack,
        which finds it claimed: no pack may hold a run twice."""
        first, _ = self.collected[0]
        group: dict[UUID, tuple[Message, Any]] = {}
        for message, delivery in self.collected:
            if packs.kind(message) == packs.kind(first):
                group.setdefault(message.id, (message, delivery))
        most = packs.most(durations.lately[first.target])
        pack = Pack.of(next(packs.parts([message for message, _ in group.values()], most)).messages)
        deliveries = [group[message.id][1] for message in pack.messages]
        self.collected = [each for each in self.collected if each[1] not in deliveries]
        return pack, deliveries

    def _settled(self, bundle: "_Bundle") -> None:
        if bundle in self.under_way:
            self.under_way.discard(bundle)
            self.consumer.hub.call_soon(self.flush)


class _Bundle:
    """Stands for the channel of a pack that was made here: to settle that is to settle each message in it."""

    no_ack_consumers = None

    def __init__(self, deliveries: Sequence[Any], settled: Callable[["_Bundle"], None]) -> None:
        self.deliveries = deliveries
        self.settled = settled

    def delivery(self, pack: Pack) -> kombu.Message:
        """The pack as if it had come in one message."""
        body, headers = publishing.worded(pack, origin="")
        content_type, encoding, payload = dumps(body, serializer="json")
        return kombu.Message(
            body=payload,
            content_type=content_type,
            content_encoding=encoding,
            accept={content_type},
            headers=headers,
            properties={"priority": pack.priority},
            delivery_info={"exchange": "", "routing_key": pack.queue},
            delivery_tag=headers["id"],
            channel=self,
        )

    def basic_ack(self, _tag: str, multiple: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - a channel's own
        self._settle(lambda delivery: delivery.ack())

    def basic_reject(self, _tag: str, requeue: bool) -> None:  # noqa: FBT001 - a channel's own
        self._settle(lambda delivery: delivery.reject(requeue=requeue))

    def _settle(self, settle: Callable[[Any], None]) -> None:
        try:
            for delivery in self.deliveries:
                settle(delivery)
        finally:
            self.settled(self)


def is_quick(delivery: Any) -> bool:
    """Whether it is the first attempt of one run, of a target whose runs take less than a message itself costs."""
    headers = delivery.headers if isinstance(delivery.headers, dict) else {}
    ticket = headers.get(messages.HEADER)
    duration = durations.lately.get(headers.get("task", ""), packs.MESSAGE)
    is_first = isinstance(ticket, dict) and ticket.get("attempt") == 1
    return is_first and duration < packs.MESSAGE and settings.load().PUNCTUAL_PACKS


def read(delivery: Any) -> Message | None:
    """What a message carries that may be packed; None for any other, and for one that the usual way must see to."""
    if not is_quick(delivery):
        return None
    try:
        args, kwargs, _ = delivery.payload
        _, timeout = delivery.headers["timelimit"]
        return Message(
            ticket=Ticket.decode(delivery.headers[messages.HEADER]),
            target=delivery.headers["task"],
            queue=delivery.delivery_info["routing_key"],
            priority=delivery.properties.get("priority") or 0,
            args=args,
            kwargs=kwargs,
            timeout=timedelta(seconds=timeout),
        )
    except (DecodeError, ContentDisallowed, LookupError, TypeError, ValueError):
        return None
