"""What lies between a client and a view: proxies in front, browsers with their rules, TLS."""

import contextlib
import re
import time
from http import HTTPStatus
from uuid import uuid4

import flask
import structlog
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from app import errors, metrics, settings, traces

REQUEST_ID = "X-Request-Id"
REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._\-]{1,64}")

YEAR = 365 * 86_400

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""On every answer."""

NOTHING = "default-src 'none'; frame-ancestors 'none'"
"""The policy of what is no page: it may load nothing, and nobody may frame it."""

BROWSED = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; font-src 'self'; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "  # Swagger UI's page has a script within
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The policy of the page that shows the API's document."""

METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})

READABLE = ("ETag", "Location", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


def register(app: flask.Flask) -> None:
    """Has `app` trust as many proxies as the settings say, and browsers of no origin that they do not name."""
    config = settings.load()
    hops = config.PUNCTUAL_TRUSTED_PROXIES
    if hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_prefix=0)  # type: ignore[method-assign]
    if config.PUNCTUAL_CORS_ORIGINS:
        CORS(
            app,
            resources=r"/api/v1/.*",
            origins=list(config.PUNCTUAL_CORS_ORIGINS),
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-Match"],
            expose_headers=list(READABLE),
            max_age=600,
        )
    app.before_request(name_request)
    app.after_request(harden)
    app.after_request(count)
    app.teardown_request(forget_request)


def name_request() -> None:
    """Gives the request an id, the client's or a new one, which stands in each line that is logged meanwhile."""
    given = flask.request.headers.get(REQUEST_ID, "")
    flask.g.began = time.monotonic()
    flask.g.request_id = given if REQUEST_ID_FORM.fullmatch(given) else uuid4().hex
    structlog.contextvars.clear_contextvars()  # a thread serves one request after the other
    structlog.contextvars.bind_contextvars(request=flask.g.request_id)
    flask.g.traced = contextlib.ExitStack()
    name = f"{flask.request.method} {flask.request.url_rule or 'unknown'}"
    flask.g.span = flask.g.traced.enter_context(traces.request(name, flask.request.headers.items()))


def forget_request(_exc: BaseException | None) -> None:
    """The request is over, and so are its id and its span."""
    if (traced := flask.g.pop("traced", None)) is not None:
        traced.close()
    structlog.contextvars.clear_contextvars()


def count(response: flask.Response) -> flask.Response:
    """Counts the request. What is no route of ours is one word, and so is a method of nobody's."""
    endpoint = flask.request.endpoint or "unknown"
    method = flask.request.method if flask.request.method in METHODS else "other"
    measured = metrics.REQUESTS.labels(endpoint, method, response.status_code)
    metrics.observe(measured, [time.monotonic() - flask.g.began])
    if (span := flask.g.get("span")) is not None:
        span.set_attribute("http.response.status_code", response.status_code)
    return response


def harden(response: flask.Response) -> flask.Response:
    """Keeps browsers from guessing, framing and telling on; and on TLS, once they came by TLS."""
    response.headers[REQUEST_ID] = flask.g.request_id
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:  # the limiter says when its count is over, on any answer
        response.headers["Retry-After"] = str(errors.Unavailable.retry_after)
    elif response.status_code != HTTPStatus.TOO_MANY_REQUESTS:
        response.headers.pop("Retry-After", None)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    policy = BROWSED if flask.request.endpoint == "api-docs.openapi_swagger_ui" else NOTHING
    response.headers.setdefault("Content-Security-Policy", policy)
    if flask.request.path.startswith("/api/v1/"):
        response.headers.setdefault("Cache-Control", "no-store")
    if flask.request.is_secure:
        response.headers.setdefault("Strict-Transport-Security", f"max-age={YEAR}")
    return response
