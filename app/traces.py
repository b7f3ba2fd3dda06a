"""Traces, sent to where OTEL_EXPORTER_OTLP_ENDPOINT says: what became of a run, from its slot over the message to its
attempts. Nothing is done where that is not set.

The trace of a run has the run's own id. So beats, workers and whoever tries it again speak of the same trace, though
nothing but the id that they have anyway goes from one to the other. What makes a run by hand links its own trace to it.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from app import settings
from app.messages import Ticket

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
DRAWN = 48
"""The first bits of a run's id, which are as good as random; those behind say which kind of id it is."""


class _Tracing:
    """This process's tracer; none where traces go nowhere."""

    tracer: trace.Tracer | None = None
    provider: Any = None
    ids: Any = None


def start(kind: str) -> None:
    """From here on this process, a web, a beat or a worker, sends what it does. After a fork it is called anew."""
    config = settings.load()
    if not config.OTEL_EXPORTER_OTLP_ENDPOINT:
        return
    from app import trace_export  # noqa: PLC0415 - not where nothing is traced: see there

    _Tracing.ids = trace_export.Ids()
    _Tracing.provider = trace_export.provider(kind, config.OTEL_EXPORTER_OTLP_ENDPOINT, _Tracing.ids)
    _Tracing.tracer = _Tracing.provider.get_tracer("punctual")


def stop() -> None:
    """Sends what is left."""
    if _Tracing.provider is not None:
        _Tracing.provider.shutdown()
        _Tracing.provider = _Tracing.tracer = None


@contextmanager
def request(name: str, headers: Iterable[tuple[str, str]]) -> Iterator[Span | None]:
    """A request that a web answers; it goes on with the trace of a client that names one."""
    if _Tracing.tracer is None:
        yield None
        return
    given = propagate.extract({key.lower(): value for key, value in headers})
    with _Tracing.tracer.start_as_current_span(name, given, kind=SpanKind.SERVER) as span:
        yield span


def fired(task: UUID, run: UUID, slot: datetime) -> None:
    """A run was recorded: from its slot on, or within a request, by hand, which is linked with it."""
    if _Tracing.tracer is None or not is_sampled(run):
        return
    by_hand = trace.get_current_span()
    asked = by_hand.get_span_context()
    links = [Link(asked)] if asked.is_valid else []
    begins = None if asked.is_valid else _nanoseconds(slot)
    about = {"punctual.run": str(run), "punctual.task": str(task)}
    _Tracing.tracer.start_span("fire", _within(run), start_time=begins, attributes=about, links=links).end()
    if asked.is_valid:
        by_hand.add_link(_root(run))


def sent(ticket: Ticket, queue: str, headers: dict[str, Any]) -> None:
    """A run's message goes out; its headers come to name the trace, for workers of other apps."""
    if _Tracing.tracer is None or not is_sampled(ticket.run):
        return
    about = _about(ticket) | {
        "messaging.system": "celery",
        "messaging.destination.name": queue,
        "messaging.message.id": str(ticket.run),
    }
    span = _Tracing.tracer.start_span(f"send {queue}", _within(ticket.run), kind=SpanKind.PRODUCER, attributes=about)
    propagate.inject(headers, context=trace.set_span_in_context(span))
    span.end()


@contextmanager
def attempt(ticket: Ticket, target: str) -> Iterator[Callable[[str], None]]:
    """An attempt; what its target traces of itself stands below. Yields what notes that it failed, by which error."""
    if _Tracing.tracer is None or not is_sampled(ticket.run):
        yield lambda _: None
        return
    with _Tracing.tracer.start_as_current_span(
        f"attempt {target}",
        _within(ticket.run),
        kind=SpanKind.CONSUMER,
        attributes=_about(ticket),
        record_exception=False,
    ) as span:
        yield lambda error: span.set_status(Status(StatusCode.ERROR, error))


def ended(ticket: Ticket, state: str) -> None:
    """A run has ended: the span that all others of its trace stand below, from the slot to now."""
    if _Tracing.tracer is None or not is_sampled(ticket.run):
        return
    _Tracing.ids.give(_root(ticket.run).span_id)
    about = _about(ticket) | {"punctual.state": state}
    span: Any = _Tracing.tracer.start_span(
        "run", _within(ticket.run), start_time=_nanoseconds(ticket.slot), attributes=about
    )
    span._parent = None  # noqa: SLF001 - the API has no word for the first span of a trace whose id is given
    span.end()


def inject(headers: MutableMapping[str, str]) -> None:
    """Has the headers of a call name the trace that it is made in."""
    if _Tracing.tracer is not None:
        propagate.inject(headers)


def _about(ticket: Ticket) -> dict[str, Any]:
    return {f"punctual.{name}": value for name, value in ticket.named().items()}


def is_sampled(run: UUID) -> bool:
    """Whether a run is traced: the same in every process."""
    return run.int >> (128 - DRAWN) < int(_share() * 2**DRAWN)


@cache
def _share() -> float:
    return settings.load().OTEL_TRACES_SAMPLER_ARG


def _within(run: UUID) -> Context:
    """The context of a span of a run's trace."""
    return trace.set_span_in_context(NonRecordingSpan(_root(run)))


def _root(run: UUID) -> SpanContext:
    """The span of the run itself."""
    return SpanContext(trace_id=run.int, span_id=run.int & (2**64 - 1), is_remote=True, trace_flags=SAMPLED)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000_000)
