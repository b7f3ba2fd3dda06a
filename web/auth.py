"""Who may call what: `RULES` is the one table, from which the checks, the documentation and the tests are made.

The API takes the key with each request. Pages take it once and keep a session: a signed cookie that names the key by
its fingerprint, so that a key that is revoked, or another administrator's key in the settings, ends every session.
"""

import hashlib
import hmac
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import flask
from sqlalchemy.orm import Session

from app import api_keys, clock, db, errors, replica, settings
from app.actors import Actor
from app.models import ApiKey
from app.states import Role, Via

API = "/api/v1/"
PAGES = "ui"
"""The blueprint whose views take a session in place of a key."""

ANYBODY: dict[str, Role | None] = dict.fromkeys(
    (
        "api-docs.openapi_json",
        "api-docs.openapi_swagger_ui",
        "bootstrap.static",
        "docs.asset",
        "health.process",
        "health.stores",
        "metrics.show",
        "ui.calendar",  # its address is the key to it
        "ui.sign_in",
        "ui.static",
    )
)
VIEWER = dict.fromkeys(
    (
        "cluster.show",
        "forecast.show",
        "incidents.index",
        "runs.index",
        "runs.show",
        "schedules.preview",
        "stats.show",
        "targets.index",
        "tasks.export",
        "tasks.index",
        "tasks.runs",
        "tasks.show",
        "tasks.upcoming",
        "ui.all_runs",
        "ui.all_tasks",
        "ui.cluster",
        "ui.forecast",
        "ui.overview",
        "ui.show_run",
        "ui.show_task",
        "ui.sign_out",
        "ui.week",
    ),
    Role.VIEWER,
)
OPERATOR = dict.fromkeys(
    (
        "runs.cancel",
        "runs.retry",
        "tasks.backfill",
        "tasks.pause",
        "tasks.pause_many",
        "tasks.resume",
        "tasks.resume_many",
        "tasks.run",
        "ui.backfill_task",
        "ui.cancel_run",
        "ui.pause_task",
        "ui.resume_task",
        "ui.retry_run",
        "ui.run_task",
        "ui.steer_tasks",  # to delete with it takes an editor: see there
    ),
    Role.OPERATOR,
)
EDITOR = dict.fromkeys(
    (
        "tasks.change",
        "tasks.create",
        "tasks.create_many",
        "tasks.delete",
        "tasks.delete_many",
        "tasks.import_many",
        "ui.change_task",
        "ui.create_task",
        "ui.delete_task",
        "ui.edit_task",
        "ui.new_task",
    ),
    Role.EDITOR,
)
ADMIN = dict.fromkeys(
    (
        "audit.index",
        "keys.create",
        "keys.index",
        "keys.revoke",
        "ui.all_keys",
        "ui.audit",
        "ui.create_key",
        "ui.revoke_key",
    ),
    Role.ADMIN,
)
RULES: Mapping[str, Role | None] = {**ANYBODY, **VIEWER, **OPERATOR, **EDITOR, **ADMIN}
"""By endpoint the role that it takes; None: it needs no key. What is not named here answers nobody."""

REQUIRED = ("SECRET_KEY", "PUNCTUAL_ADMIN_KEY")
"""Settings without which web does not start."""

ADMINISTRATOR = "admin"
"""Stands for the key in the settings where a key's id is asked for."""

REMEMBERED = 2.0
"""Seconds for which a process takes a key as it found it: so long may one that is revoked still work."""

SESSION_KEPT = timedelta(days=7)
"""A session ends so long after the sign-in, used or not."""


def identify() -> None:
    """Finds out who makes the request, before anything else is done with it. Raises Unavailable where PostgreSQL is
    away and the key is none that this process remembers."""
    flask.g.actor = None
    if _is_open():
        return
    if flask.request.blueprint == PAGES:
        flask.g.actor = _session_actor()
    else:
        flask.g.actor = _key_actor(bearer(flask.request.headers.get("Authorization", "")), Via.API)


def guard() -> None:
    """Raises Unauthorized where a request needs a key or a session and has no valid one, and Forbidden where the role
    does not include the one that the route takes."""
    if _is_open():
        return
    if actor() is None:
        raise errors.Unauthorized
    endpoint = flask.request.endpoint
    if endpoint is None:
        return
    role = RULES.get(endpoint)
    if role is None:
        raise errors.Forbidden("No rule says who may call this, so nobody may.")
    require(role)


def _is_open() -> bool:
    """Whether a request needs no key. Below the API an unknown address needs one too, so that a stranger cannot learn
    which there are."""
    endpoint = flask.request.endpoint
    known = endpoint is not None or flask.request.path.startswith(API)
    return not known or endpoint in ANYBODY or _is_preflight()


def _is_preflight() -> bool:
    """Whether a browser asks if a page of another origin may call: it sends no key, and no view answers."""
    asks = flask.request.method == "OPTIONS" and "Access-Control-Request-Method" in flask.request.headers
    return asks and bool(settings.load().PUNCTUAL_CORS_ORIGINS)


def actor() -> Actor | None:
    """Who makes this request; None where nobody had to say."""
    found: Actor | None = flask.g.get("actor")
    return found


@contextmanager
def transaction() -> Iterator[Session]:
    """A transaction in the name of whoever makes this request. One within another is a part of it."""
    outer: Session | None = flask.g.get("session")
    if outer is not None:
        yield outer
        return
    with db.transaction(by=actor()) as session:
        flask.g.session = session
        try:
            yield session
        finally:
            flask.g.session = None
    if flask.request.method == "POST" and flask.request.blueprint == PAGES:
        flask.session["wrote"] = int(time.time())


@contextmanager
def reading() -> Iterator[Session]:
    """As `transaction`, for lists and statistics: from the replica, where there is one, and changing nothing.

    A person who has just changed something by a page sees what they did: their pages are read from the primary for as
    long as the replica may lag.
    """
    outer: Session | None = flask.g.get("session")
    wrote = flask.session.get("wrote") if flask.request.blueprint == PAGES else None
    if outer is not None:
        yield outer
    elif isinstance(wrote, int | float) and time.time() - wrote <= replica.MAX_LAG + 1:
        with replica.on_primary(by=actor()) as session:
            yield session
    else:
        with replica.reading(by=actor()) as session:
            yield session


def bearer(header: str) -> str | None:
    """The key that an Authorization header holds."""
    scheme, _, key = header.partition(" ")
    # WSGI's headers are bytes in latin-1's clothes
    return key.strip().encode("latin-1", "replace").decode(errors="replace") if scheme.lower() == "bearer" else None


def _key_actor(text: str | None, via: Via) -> Actor | None:
    """Who holds this key; None where it is no key of ours. Takes as long for any other key."""
    if text is None:
        return None
    if _is_one_of(text, settings.load().admin_keys):
        return _administrator(via)
    found = api_keys.split(text)
    key = _remembered.get(found[0]) if found else None
    if found is None or key is None or not api_keys.opens(key, found[1], clock.now()):
        return None
    _note_use(key)
    return _holder(key, via)


def _note_use(key: ApiKey) -> None:
    """Notes, to the minute, that a key was used. Each process does so for itself, which does no harm."""
    now = clock.now()
    if key.last_used_at is None or now - key.last_used_at > api_keys.USED_EVERY:
        key.last_used_at = now  # as it is remembered; the next look finds what stands in the table
        with db.transaction() as session:
            api_keys.note_use(session, key.id, now)


def _session_actor() -> Actor | None:
    """Whose session this is, while its key is still one of ours and it has not lasted too long."""
    kept, mark, since = (flask.session.get(name) for name in ("key", "mark", "since"))
    if not (isinstance(kept, str) and isinstance(mark, str) and isinstance(since, int | float)):
        return None
    if time.time() - since > SESSION_KEPT.total_seconds():
        return None
    if kept == ADMINISTRATOR:
        return _administrator(Via.PAGE) if _is_one_of(mark, administrator_marks()) else None
    key = _remembered.get(kept)
    if key is None or not api_keys.is_valid(key, clock.now()) or not _is_one_of(mark, _marks(_lasting(key))):
        return None
    _note_use(key)
    return _holder(key, Via.PAGE)


def _administrator(via: Via) -> Actor:
    return Actor(id=ADMINISTRATOR, name="administrator", role=Role.ADMIN, via=via, address=flask.request.remote_addr)


def _holder(key: ApiKey, via: Via) -> Actor:
    return Actor(
        id=key.id,
        name=key.name,
        role=Role(key.role),
        via=via,
        key=key.id,
        address=flask.request.remote_addr,
        queues=None if key.queues is None else tuple(key.queues),
        labels=key.labels,
    )


def open_session(text: str) -> bool:
    """Opens a session for whoever holds this key. False: it is no key of ours."""
    found = _key_actor(text, Via.PAGE)
    if found is None:
        return False
    flask.session.clear()  # whatever stood in it before belongs to nobody; forms get another token too
    flask.session.permanent = True
    key = _remembered.get(found.key) if found.key else None
    mark = _marks(text if key is None else _lasting(key))[0]
    flask.session.update(key=found.id, mark=mark, since=int(time.time()), nonce=secrets.token_hex(8))
    return True


def administrator_marks() -> list[str]:
    """The marks of the administrator's keys in the settings. The first is the one for what is made from now on."""
    return [mark for key in settings.load().admin_keys for mark in _marks(key)]


def _marks(text: str) -> list[str]:
    """Each stands for a key in a session: tells nothing of it, and changes with it and with what signs sessions. The
    first is the one for new sessions."""
    return [hmac.digest(secret.encode(), text.encode(), hashlib.sha256).hex() for secret in settings.load().secret_keys]


def _lasting(key: ApiKey) -> str:
    return f"{key.id} {key.digest}"


def _is_one_of(text: str, known: Iterable[str]) -> bool:
    """Takes as long for whatever is none of them."""
    given = text.encode(errors="replace")
    return any(hmac.compare_digest(given, each.encode()) for each in known)


class Remembered:
    """Keys as they were found, for a moment: so that not each request has to look for its own."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[float, ApiKey]] = {}

    def get(self, key_id: str) -> ApiKey | None:
        """The key of an id. Raises Unavailable where it is not remembered and PostgreSQL is away."""
        until, key = self.kept.get(key_id, (0.0, None))
        if key is not None and time.monotonic() < until:
            return key
        with db.transaction() as session:
            found = session.get(ApiKey, key_id)
            if found is not None:
                session.expunge(found)
        if found is None:  # not remembered: it may be made in the next moment
            self.kept.pop(key_id, None)
        else:
            self.kept[key_id] = (time.monotonic() + REMEMBERED, found)
        return found


_remembered = Remembered()


def forget(key_id: str) -> None:
    """Has this process look for a key anew."""
    _remembered.kept.pop(key_id, None)


def as_key(key_id: str) -> Actor:
    """The holder of the key that made an address which needs none. Raises NotFound where the key is not valid now."""
    key = _remembered.get(key_id)
    if key is None or not api_keys.is_valid(key, clock.now()):
        raise errors.NotFound
    return _holder(key, Via.PAGE)


def may(role: str) -> bool:
    """Whether the request's role includes this one."""
    held = flask.g.get("actor")
    return held is not None and held.role.includes(Role(role))


def require(role: Role) -> None:
    """Raises Forbidden where the request's role does not include this one."""
    if not may(role):
        raise errors.Forbidden(f"This takes the role {role}; your key has the role {flask.g.actor.role}.")


def require_secrets() -> None:
    """Ends the process with one line where web's secrets are not set."""
    config = settings.load()
    missing = [name for name in REQUIRED if getattr(config, name) is None]
    if missing:
        sys.exit(f"punctual: {missing[0]}: is required by web")
