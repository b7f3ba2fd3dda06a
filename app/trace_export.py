"""OpenTelemetry's SDK, set up for `app.traces`. Imported only where traces are sent: it costs each process 10 MB."""

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

SEND_EVERY = 1_000
"""Milliseconds; a process that is killed takes with it what it has not sent."""


class Ids(RandomIdGenerator):
    """Random ids, but for the span of a run that all others stand below: its id is known before it has been."""

    def __init__(self) -> None:
        self.next = threading.local()

    def give(self, span_id: int) -> None:
        """The next span that this thread makes has this id."""
        self.next.id = span_id

    def generate_span_id(self) -> int:
        given: int | None = self.next.__dict__.pop("id", None)
        return given or super().generate_span_id()


def provider(kind: str, address: str, ids: Ids) -> TracerProvider:
    """What makes the spans of a process, and sends them to a collector's address."""
    made = TracerProvider(resource=Resource.create({"service.name": f"punctual-{kind}"}), id_generator=ids)
    exporter = OTLPSpanExporter(endpoint=f"{address.rstrip('/')}/v1/traces", timeout=5)
    made.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY))
    return made
