"""A target that the workers of a drill have beside the built-in ones: it calls the witness as `http.request` does, and
so quickly that runs of it which fall due together travel in packs."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from celery import shared_task

TIMEOUT = 5.0


@shared_task(name="drill.call", bind=True)  # type: ignore[untyped-decorator]
def call(self: Any, url: str, body: dict[str, Any]) -> int:
    """Tells the witness that it started."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
    try:
        headers = {"Content-Type": "application/json", "Idempotency-Key": self.request.id}
        connection.request("POST", parts.path or "/", json.dumps(body), headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status >= http.client.BAD_REQUEST:
        raise RuntimeError(f"the witness answered {status}")
    return status
