"""Who may call what. Everything needs a key but what is named here; roles come between key and route.

The API takes the key with each request. Pages take it once and keep a session: a signed cookie that names the key by
its fingerprint, so that another key in the settings ends every session.
"""

import functools
import hashlib
import hmac
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import flask

from app import errors, settings
from app.states import Role

View = TypeVar("View", bound=Callable[..., Any])

API = "/api/v1/"
PAGES = "ui"
"""The blueprint whose views take a session in place of a key."""

PUBLIC = frozenset(
    {
        "api-docs.openapi_json",
        "api-docs.openapi_swagger_ui",
        "bootstrap.static",
        "docs.asset",
        "health.process",
        "health.stores",
        "ui.calendar",
        "ui.sign_in",
        "ui.static",
    }
)
"""The endpoints that need no key. A new route needs one until it is named here."""

REQUIRED = ("SECRET_KEY", "PUNCTUAL_ADMIN_KEY")
"""Settings without which web does not start."""


def register(app: flask.Flask) -> None:
    """Guards every request to `app`."""
    app.before_request(guard)


def guard() -> None:
    """Raises Unauthorized where a request needs a key or a session and has no valid one.

    Below the API an unknown address needs one too, so that a stranger cannot learn which there are.
    """
    endpoint = flask.request.endpoint
    known = endpoint is not None or flask.request.path.startswith(API)
    if not known or endpoint in PUBLIC:
        return
    if flask.request.blueprint == PAGES:
        flask.g.role = session_role()
    else:
        flask.g.role = key_role(bearer(flask.request.headers.get("Authorization", "")))
    if flask.g.role is None:
        raise errors.Unauthorized


def bearer(header: str) -> str | None:
    """The key that an Authorization header holds."""
    scheme, _, key = header.partition(" ")
    # WSGI's headers are bytes in latin-1's clothes
    return key.strip().encode("latin-1", "replace").decode(errors="replace") if scheme.lower() == "bearer" else None


def key_role(key: str | None) -> Role | None:
    """The role of whoever holds this key; None where it is no key of ours. Takes as long for any other key."""
    admin = settings.load().PUNCTUAL_ADMIN_KEY
    if key is None or admin is None:
        return None
    given = key.encode(errors="replace")
    return Role.ADMIN if hmac.compare_digest(given, admin.get_secret_value().encode()) else None


def session_role() -> Role | None:
    """The role of the session, while its key is still one of ours."""
    kept = flask.session.get("key")
    if not isinstance(kept, str) or not hmac.compare_digest(kept, fingerprint()):
        return None
    return Role(flask.session["role"])


def open_session(key: str) -> bool:
    """Opens a session for whoever holds this key. False: it is no key of ours."""
    role = key_role(key)
    if role is None:
        return False
    flask.session.clear()  # whatever stood in it before belongs to nobody
    flask.session.permanent = True
    flask.session.update(key=fingerprint(), role=str(role))
    return True


def fingerprint() -> str:
    """Stands for the administrator's key in a session: tells nothing of it, and changes with it."""
    config = settings.load()
    assert config.SECRET_KEY is not None
    assert config.PUNCTUAL_ADMIN_KEY is not None
    secrets = (config.SECRET_KEY.get_secret_value(), config.PUNCTUAL_ADMIN_KEY.get_secret_value())
    return hmac.digest(secrets[0].encode(), secrets[1].encode(), hashlib.sha256).hex()


def may(role: str) -> bool:
    """Whether the request's role includes this one."""
    held = getattr(flask.g, "role", None)
    return held is not None and held.includes(Role(role))


def require(role: Role) -> None:
    """Raises Forbidden where the request's role does not include this one."""
    if not may(role):
        raise errors.Forbidden(f"This takes the role {role}; your key has the role {flask.g.role}.")


def needs(role: Role) -> Callable[[View], View]:
    """The view is for this role and those above it. Raises Forbidden for the others."""

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            require(role)
            return view(*args, **kwargs)

        return guarded  # type: ignore[return-value]

    return decorate


def require_secrets() -> None:
    """Ends the process with one line where web's secrets are not set."""
    config = settings.load()
    missing = [name for name in REQUIRED if getattr(config, name) is None]
    if missing:
        sys.exit(f"punctual: {missing[0]}: is required by web")
