"""Keys and the audit log, for administrators: who may do what, and who did what."""

from collections.abc import Mapping
from typing import Any

import flask

from app import api_keys, db, errors, queries, schemas
from app.states import Action, Role, Subject
from web import access, auth
from web.ui import pages, reading
from web.ui.pages import blp, lead, lines, page

LIMIT = 50


@blp.get("/keys")
def all_keys() -> flask.Response:
    """Lists keys, and has a form for a new one."""
    return _keys()


@blp.post("/keys")
def create_key() -> flask.Response:
    """Makes a key and shows it, this once; or the form again with what is wrong."""
    form = flask.request.form
    try:
        fields = schemas.load(access.NewKeySchema(), _given(form))
    except errors.Invalid as exc:
        return _keys(status=422, problems=lines(exc.errors), typed=form)
    with auth.transaction() as session:
        made = api_keys.create(session, db.now(session), fields)
    shown = _keys(made=made)
    shown.headers["Cache-Control"] = "no-store"  # nobody finds the key by going back
    return shown


@blp.post("/keys/<string:key_id>/revoke")
def revoke_key(key_id: str) -> flask.Response:
    """Revokes a key for good."""
    with auth.transaction() as session:
        key = api_keys.revoke(session, db.now(session), key_id)
    auth.forget(key_id)
    return lead(f"{key.name} opens nothing any more.", flask.url_for("ui.all_keys"))


def _given(form: Mapping[str, str]) -> dict[str, Any]:
    """The form as the API would have it."""
    queues = [name.strip() for name in form.get("queues", "").split(",") if name.strip()]
    given = {
        "name": form.get("name", "").strip(),
        "role": form.get("role", ""),
        "queues": queues or None,
        "labels": reading.labels(form.get("labels", "").split(",")),
    }
    ends = reading.instant(form.get("expires_at", ""), "UTC", "expires_at")
    return given | ({"expires_at": ends} if ends else {})


def _keys(status: int = 200, **shown: Any) -> flask.Response:
    shown = {"problems": [], "typed": {}, "made": None, "roles": list(Role)} | shown
    with auth.transaction() as session:
        now = db.now(session)
        found = queries.api_keys(session, limit=LIMIT, after=flask.request.args.get("after"))
    return page("keys", status, keys=found, now=now, **shown)


@blp.get("/audit")
def audit() -> flask.Response:
    """Lists what people and apps changed, with the difference."""
    asked = pages.asked()
    wanted, problems = reading.filters(access.AuditQuerySchema(), asked)
    with auth.transaction() as session:
        found = queries.audit(session, **wanted | {"limit": LIMIT})
    return page("audit", entries=found, asked=asked, problems=problems, actions=list(Action), subjects=list(Subject))
