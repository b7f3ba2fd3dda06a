"""Who may call what. Everything needs a key but what is named here; roles come between key and route."""

import hmac
import sys

import flask

from app import errors, settings

API = "/api/v1/"

PUBLIC = frozenset(
    {
        "api-docs.openapi_json",
        "api-docs.openapi_swagger_ui",
        "docs.asset",
        "docs.start",
        "health.process",
        "health.stores",
    }
)
"""The endpoints that need no key. A new route needs one until it is named here."""

REQUIRED = ("SECRET_KEY", "PUNCTUAL_ADMIN_KEY")
"""Settings without which web does not start."""


def register(app: flask.Flask) -> None:
    """Guards every request to `app`."""
    app.before_request(guard)


def guard() -> None:
    """Raises Unauthorized where a request needs a key and has no valid one.

    Below the API an unknown address needs one too, so that a stranger cannot learn which there are.
    """
    endpoint = flask.request.endpoint
    known = endpoint is not None or flask.request.path.startswith(API)
    if known and endpoint not in PUBLIC and not is_admin(flask.request.headers.get("Authorization", "")):
        raise errors.Unauthorized


def is_admin(header: str) -> bool:
    """Whether the Authorization header holds the administrator's key; takes as long for any other key."""
    scheme, _, key = header.partition(" ")
    admin = settings.load().PUNCTUAL_ADMIN_KEY
    if scheme.lower() != "bearer" or admin is None:
        return False
    given = key.strip().encode("latin-1", "replace")  # WSGI's headers are bytes in latin-1's clothes
    return hmac.compare_digest(given, admin.get_secret_value().encode())


def require_secrets() -> None:
    """Ends the process with one line where web's secrets are not set."""
    config = settings.load()
    missing = [name for name in REQUIRED if getattr(config, name) is None]
    if missing:
        sys.exit(f"punctual: {missing[0]}: is required by web")
