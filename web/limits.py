"""How many requests a key and an address may make, counted in Redis for all webs together.

While Redis is away each process counts for itself, and says so once: a limit is no reason to refuse everybody.
"""

import logging
from http import HTTPStatus
from typing import Any

import flask
from flask_limiter import ApplicationLimit as _Limit
from flask_limiter import HeaderNames, Limiter

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
    config = settings.load()
    limits = [
        _Limit(
            f"{config.PUNCTUAL_RATE_WRONG_KEYS}/minute",
            scope="stranger",
            exempt_when=_is_known,
            deduct_when=_is_refused,
        ),
        _Limit(f"{config.PUNCTUAL_RATE_PER_ADDRESS}/minute", scope="address"),
        _Limit(f"{config.PUNCTUAL_RATE_PER_KEY}/minute", scope="key", key_function=_key, exempt_when=_is_stranger),
    ]
    limiter = Limiter(
        _address,
        app=app,
        application_limits=[limit for limit in limits if not str(limit.limit_provider).startswith("0/")],
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


def _is_stranger() -> bool:
    return auth.actor() is None


def _is_refused(response: flask.Response) -> bool:
    return response.status_code == HTTPStatus.UNAUTHORIZED
