"""The web app: puts its parts together. gunicorn serves it as `web.main:app`, which is made at first use."""

from datetime import timedelta
from functools import cache
from typing import Any

import flask
from flask.sessions import SecureCookieSessionInterface, SessionMixin

from app import settings, traces
from web import auth, docs, errors, limits, transport, ui
from web.api import audit, cluster, forecast, health, incidents, keys, metrics, runs, schedules, stats, targets, tasks

RESOURCES = (
    tasks,
    runs,
    incidents,
    schedules,
    targets,
    stats,
    forecast,
    cluster,
    keys,
    audit,
    health,
    metrics,
)

SESSION_IDLE = timedelta(hours=12)
"""A session that was not used for so long ends."""


class Sessions(SecureCookieSessionInterface):
    """Sessions whose time is counted from what a person does: what a page asks for by itself does not renew them.

    Else an open tab would stay signed in for ever, and write back a session that another request has changed meanwhile:
    one that was left, or one that holds a word for the next page.
    """

    def should_set_cookie(self, app: flask.Flask, session: SessionMixin) -> bool:
        by_itself = ui.PART in flask.request.headers or flask.request.endpoint in {"ui.static", "bootstrap.static"}
        return super().should_set_cookie(app, session) and not by_itself

    def get_cookie_secure(self, app: flask.Flask) -> bool:  # noqa: ARG002 - Flask's own signature
        return flask.request.is_secure


def create_app() -> flask.Flask:
    """A web app of its own. Ends the process with one line where the environment lacks what it needs."""
    auth.require_secrets()
    traces.start("web")
    app = flask.Flask("web", static_folder=None, static_url_path="/static")
    signs, *others = settings.load().secret_keys
    app.config |= {
        "SECRET_KEY": signs,
        "SECRET_KEY_FALLBACKS": others,
        "SESSION_COOKIE_NAME": "punctual",
        "SESSION_COOKIE_SAMESITE": "Lax",
        "PERMANENT_SESSION_LIFETIME": SESSION_IDLE,
    }
    app.json.sort_keys = False  # type: ignore[attr-defined]  # answers keep the contract's order
    app.url_map.merge_slashes = False  # an address with a doubled slash is unknown, not redirected in HTML
    app.session_interface = Sessions()
    errors.register(app)
    transport.register(app)
    app.before_request(auth.identify)
    limits.register(app)
    app.before_request(auth.guard)
    api = docs.register(app)
    for resource in RESOURCES:
        api.register_blueprint(resource.blp)
    ui.register(app)
    return app


@cache
def _app() -> flask.Flask:
    return create_app()


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    raise AttributeError(name)
