"""How much the API carries where 100,000 tasks are: two web processes of the Procfile, with clients beside them.

The clients share the machine's processors with web and PostgreSQL, so a second machine's clients would see more.
"""

import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from app import settings
from bench import load, pages, stage
from bench.figures import Figure
from deploy.processes import free_port

WEB = "gunicorn --config python:web.server web.main:app"
CLIENTS = 8
SECONDS = 5.0
BULK = 1_000
BULKS = 20
BULK_CLIENTS = 4

Ask = Callable[[http.client.HTTPConnection, int], None]


def api() -> list[Figure]:
    """Requests per second and their 99th percentile, one kind after the other; and tasks per second in bulk."""
    with load.running(beats=0):
        pass  # its worker says what it offers, and is not needed any more
    pages.fill(runs=0)
    with _web() as port:
        with stage.connection() as connection:
            [(task,)] = connection.execute("SELECT id FROM tasks LIMIT 1").fetchall()
        found = [
            *_measure("GET /tasks/{id}", port, _get(f"/api/v1/tasks/{task}")),
            *_measure("GET /tasks", port, _get("/api/v1/tasks")),
            *_measure("POST /tasks", port, _post),
        ]
        return [*found, *_bulk(port)]


@contextmanager
def _web() -> Iterator[int]:
    port = free_port()
    with stage.running({"web": WEB}, {"PORT": str(port), "HOST": "127.0.0.1"}):
        stage.wait(lambda: _answers(port), within=30, missing=lambda: "web did not answer")
        yield port


def _answers(port: int) -> bool:
    try:
        _ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", "/healthz")
    except OSError:
        return False
    return True


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> bytes:
    key = settings.load().PUNCTUAL_ADMIN_KEY
    assert key is not None
    headers = {"Authorization": f"Bearer {key.get_secret_value()}", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise stage.Missing(f"{method} {path} answered {answer.status}: {text[:200]!r}")
    return text


def _get(path: str) -> Ask:
    def ask(connection: http.client.HTTPConnection, _number: int) -> None:
        _ask(connection, "GET", path)

    return ask


def _post(connection: http.client.HTTPConnection, number: int) -> None:
    _ask(connection, "POST", "/api/v1/tasks", _body(number))


def _body(number: int) -> dict[str, Any]:
    schedule = {"type": "cron", "expression": f"{number % 60} {number % 24} * * *", "timezone": "Europe/Paris"}
    return {"target": load.TARGET, "labels": {"team": "bench"}, "schedule": schedule}


def _measure(name: str, port: int, ask: Ask) -> list[Figure]:
    """CLIENTS ask one request after the other for SECONDS."""
    numbers, took = count(), []
    end = time.monotonic() + SECONDS

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while (started := time.monotonic()) < end:
            ask(connection, next(numbers))
            took.append(time.monotonic() - started)

    _together(CLIENTS, client)
    p99 = statistics.quantiles(took, n=100)[98]
    return [
        Figure(what=f"api: {name}", value=len(took) / SECONDS, unit="request/s"),
        Figure(what=f"api: {name}, p99", value=p99 * 1000, unit="ms"),
    ]


def _bulk(port: int) -> list[Figure]:
    numbers, took = count(), []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(BULKS // BULK_CLIENTS):
            body = {"items": [_body(next(numbers)) for _ in range(BULK)]}
            started = time.monotonic()
            _ask(connection, "POST", "/api/v1/tasks/bulk", body)
            took.append(time.monotonic() - started)

    started = time.monotonic()
    _together(BULK_CLIENTS, client)
    whole = time.monotonic() - started
    return [
        Figure(what=f"api: bulk of {BULK:,}", value=BULKS * BULK / whole, unit="task/s"),
        Figure(what=f"api: bulk of {BULK:,}, a request", value=statistics.median(took) * 1000, unit="ms"),
    ]


def _together(number: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
