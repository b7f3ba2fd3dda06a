"""Traces of a stack, as a collector of OpenTelemetry's gets them."""

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from stores import BROKER, poll

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector:
    """Takes spans by OTLP over HTTP, and the calls of `http.request`, whose headers it keeps."""

    def __init__(self):
        self.spans = defaultdict(list)
        self.called = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    collector.take(ExportTraceServiceRequest.FromString(body))
                else:
                    collector.called.append(dict(self.headers))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, request):
        for resource in request.resource_spans:
            [service] = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.trace_id.hex()].append((service, span))

    def trace(self, run, *names):
        """The spans of a run by their names, once there are these."""
        trace_id = UUID(run["id"]).hex

        def there():
            found = {span.name: (service, span) for service, span in list(self.spans[trace_id])}
            return found if found.keys() >= set(names) else None

        return poll(there, within=20)


@pytest.fixture(scope="module")
def collector():
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def stack(make_stack, collector):
    made = make_stack(BROKER)
    made.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
    made.start_all(beats=1)
    yield made
    made.stop_all()


def test_a_run_is_one_trace_from_its_slot_over_the_message_to_each_attempt(stack, collector):
    again = {"retry": {"max_attempts": 2, "backoff": 0}}
    [run] = stack.ended(stack.create(target="debug.fail", kwargs={"times": 1}, schedule={"type": "now"}, **again))
    found = collector.trace(run, "run", "fire", "send default", "attempt debug.fail")
    assert {name: service for name, (service, _) in found.items()} == {
        "fire": "punctual-beat",
        "send default": "punctual-beat",
        "attempt debug.fail": "punctual-worker",
        "run": "punctual-worker",
    }
    whole = found["run"][1]
    assert whole.parent_span_id == b""
    trace = collector.spans[UUID(run["id"]).hex]
    tries = [span for _, span in trace if span.name == "attempt debug.fail"]
    assert sorted(span.status.message for span in tries) == ["", "RuntimeError"]
    for _, span in trace:
        if span is not whole:
            assert span.parent_span_id == whole.span_id
    assert whole.start_time_unix_nano <= min(span.start_time_unix_nano for _, span in trace)
    assert whole.end_time_unix_nano >= max(span.end_time_unix_nano for span in tries)


def test_a_request_that_makes_a_run_is_linked_with_it_and_a_call_carries_the_trace_on(stack, collector):
    body = {"kwargs": {"url": f"{collector.url}/called", "method": "POST"}, "target": "http.request"}
    task = stack.create(schedule={"type": "interval", "every": 3600}, **body)
    caller = {"traceparent": f"00-{CALLER}-00f067aa0ba902b7-01"}
    run = stack.api.post(f"/tasks/{task['id']}/run", headers=caller).json()
    found = collector.trace(run, "run", "fire", "attempt http.request")
    assert found["fire"][0] == "punctual-web"
    assert [link.trace_id.hex() for link in found["fire"][1].links] == [CALLER]
    asked = poll(lambda: [span for _, span in collector.spans[CALLER] if "/run" in span.name], within=20)
    assert [link.trace_id.hex() for link in asked[0].links] == [UUID(run["id"]).hex]
    attempt = found["attempt http.request"][1]
    assert [headers["traceparent"] for headers in collector.called] == [
        f"00-{UUID(run['id']).hex}-{attempt.span_id.hex()}-01"
    ]
