"""Shows what this process and its children count, and what they are at this moment, as Prometheus reads it."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, generate_latest, multiprocess, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from app import metrics, settings

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

PORTS = 10
"""A process takes the first free port of so many, so that several on one machine need no port each."""

log = logging.getLogger(__name__)


class Reader:
    """Reads at each scrape what stands at that moment."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self.read = read

    def collect(self) -> Iterator[Metric]:
        yield from self.read()

    def describe(self) -> Iterable[Metric]:
        """Nothing: without it the registry would read at once what is only there later."""
        return ()


def gauge(name: str, says: str, value: float | Mapping[str, float], by: str = "") -> Metric:
    """A gauge with one value, or with one by what the label `by` says."""
    made = GaugeMetricFamily(name, says, labels=[by] if by else [])
    for label, each in value.items() if isinstance(value, Mapping) else [("", value)]:
        made.add_metric([label] if by else [], each)
    return made


def registry(kind: str, *reads: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """All that a process of this kind shows."""
    made = CollectorRegistry()
    multiprocess.MultiProcessCollector(made, path=str(metrics.folder()))  # type: ignore[no-untyped-call]
    for read in (lambda: _build(kind), _processes, *reads):
        made.register(Reader(read))
    return made


def text(shown: CollectorRegistry) -> bytes:
    """What Prometheus gets."""
    return generate_latest(shown)


def serve(kind: str, *reads: Callable[[], Iterable[Metric]]) -> int | None:
    """Serves a process's metrics from a thread of its own, where a port is set; returns the one that it took."""
    config = settings.load()
    first = config.PUNCTUAL_METRICS_PORT
    if not first:
        return None
    shown = registry(kind, *reads)
    for port in range(first, first + PORTS):
        with contextlib.suppress(OSError):
            start_http_server(port, addr=config.HOST, registry=shown)
            log.info("metrics are served on port %d", port)
            return port
    log.error("metrics are not served: no port from %d to %d is free", first, first + PORTS - 1)
    return None


def _build(kind: str) -> Iterable[Metric]:
    yield gauge("punctual_process_info", "What this process is.", {kind: 1.0}, "kind")


def _processes() -> Iterable[Metric]:
    """This process and its children together, under the names that every client library has for them."""
    found = list(_alive(metrics.owner()))
    spent = CounterMetricFamily("process_cpu_seconds", "Processor time, of its children too.")
    spent.add_metric([], sum(each["cpu"] for each in found))
    yield spent
    yield gauge("process_resident_memory_bytes", "Memory, of its children too.", sum(each["rss"] for each in found))
    yield gauge("process_open_fds", "Open files, of its children too.", sum(each["fds"] for each in found))
    yield gauge("process_threads", "Threads, of its children too.", sum(each["threads"] for each in found))


def _alive(root: int) -> Iterator[dict[str, float]]:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(root)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                yield _figures(process)


def _figures(process: psutil.Process) -> dict[str, float]:
    times: Any = process.cpu_times()
    ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return {
        "cpu": times.user + times.system + ended,
        "rss": process.memory_info().rss,
        "fds": process.num_fds(),
        "threads": process.num_threads(),
    }
