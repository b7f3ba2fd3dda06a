"""How many requests a key and an address may make, counted in Redis for all webs together.

While Redis is away each process counts for itself, and says so once: a limit is no reason to refuse everybody.
"""

import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import flask
from flask_limiter import ApplicationLimit, HeaderNames, Limiter

from app import bell, settings
from web import auth

HEADERS = {
    HeaderNames.LIMIT: "RateLimit-Limit",
    HeaderNames.REMAINING: "RateLimit-Remaining",
    HeaderNames.RESET: "RateLimit-Reset",
}

WAIT = 0.3
"""Seconds that a request waits for Redis at most before it is counted here."""

UNLIMITED = auth.ANYBODY.keys() - {"ui.sign_in", "ui.calendar"}
"""Endpoints that are never refused: probes, and files that a browser keeps."""


def register(app: flask.Flask) -> None:
    """Limits the requests to `app`. Who makes them is known by then: see `auth.identify`."""
    limiter = Limiter(
        _address,
        app=app,
        application_limits=list(_limits(settings.load())),
        headers_enabled=True,
        header_name_mapping=HEADERS,
        retry_after="delta-seconds",
        strategy="sliding-window-counter",
        storage_uri="redis://",
        # its client is ours, wherever REDIS_URL leads
        storage_options={"connection_pool": _connections()},
        in_memory_fallback_enabled=True,
        swallow_errors=True,  # of two requests that find Redis away at once, only the first falls back
        key_prefix="punctual",
    )
    limiter.logger.addFilter(_is_first)
    limiter.request_filter(lambda: flask.request.endpoint in UNLIMITED)


def _limits(config: settings.Settings) -> Iterator[ApplicationLimit]:
    """Those that are not switched off."""
    if rate := config.PUNCTUAL_RATE_WRONG_KEYS:
        yield ApplicationLimit(f"{rate}/minute", scope="stranger", exempt_when=_is_known, deduct_when=_is_refused)
    if rate := config.PUNCTUAL_RATE_PER_ADDRESS:
        yield ApplicationLimit(f"{rate}/minute", scope="address")
    if rate := config.PUNCTUAL_RATE_PER_KEY:
        yield ApplicationLimit(f"{rate}/minute", scope="key", key_function=_key, exempt_when=lambda: not _is_known())


def _connections() -> Any:
    return bell.connect(socket_timeout=WAIT, socket_connect_timeout=WAIT).connection_pool


def _is_first(record: logging.LogRecord) -> bool:
    """Leaves the one line that says that Redis is away, without those of the requests that found it so meanwhile."""
    return "Swallowing" not in record.getMessage()


def _address() -> str:
    return flask.request.remote_addr or ""


def _key() -> str:
    actor = auth.actor()
    return actor.id if actor else ""


def _is_known() -> bool:
    return auth.actor() is not None


def _is_refused(response: flask.Response) -> bool:
    return response.status_code == HTTPStatus.UNAUTHORIZED
