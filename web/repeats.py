"""A POST that comes again with the same Idempotency-Key is answered as it was the first time, byte for byte.

The answer is kept in the very transaction that did what was asked: a process that dies half-way leaves neither.
"""

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import flask

from app import answers, db, errors, settings
from web import auth, parser

View = TypeVar("View", bound=Callable[..., Any])

HEADER = "Idempotency-Key"
FORM = re.compile(r"[\x21-\x7e]{1,255}")
FORM_SAYS = "Must be 1 to 255 visible ASCII characters."
KEPT_HEADERS = ("Content-Type", "ETag", "Location")

PARAMETER = {
    "in": "header",
    "name": HEADER,
    "required": False,
    "description": "Of your choice, at best a UUID: a repeat of this request with it, within 24 hours, does nothing "
    "and gets the first answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
}


def once(view: View) -> View:
    """Keeps what the view answers to a request with a key. Errors are not kept: what did nothing may be tried again.

    While the first is still being answered a second gets Conflict; one with another body gets Invalid.
    """

    @functools.wraps(view)
    def answered(*args: Any, **kwargs: Any) -> Any:
        key = _key()
        if key is None:
            return view(*args, **kwargs)
        actor = auth.actor()
        route = f"{flask.request.method} {flask.request.full_path} {actor.id if actor else ''}"
        limit = max(settings.load().PUNCTUAL_MAX_BODY, getattr(view, "max_body", 0))
        body = hashlib.sha256(parser.read(flask.request, limit)).hexdigest()
        request = answers.Request(route=route, key=key, given=body)
        with auth.transaction() as session:
            kept = answers.once(session, db.now(session), request, lambda: _keep(view(*args, **kwargs)), wait=False)
        return flask.Response(kept["body"], kept["status"], kept["headers"])

    return answered  # type: ignore[return-value]


def never(view: View) -> View:
    """Refuses such a key where the answer is a secret, which must not be kept."""

    @functools.wraps(view)
    def answered(*args: Any, **kwargs: Any) -> Any:
        if _key() is not None:
            raise errors.Malformed(f"This answer is a secret and is not kept: send no {HEADER}.")
        return view(*args, **kwargs)

    return answered  # type: ignore[return-value]


def _key() -> str | None:
    key = flask.request.headers.get(HEADER)
    if key is not None and not FORM.fullmatch(key):
        raise errors.Malformed(f"{HEADER}: {FORM_SAYS}")
    return key


def _keep(answer: Any) -> dict[str, Any]:
    response = flask.make_response(answer)
    headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    return {"status": response.status_code, "headers": headers, "body": response.get_data(as_text=True)}
