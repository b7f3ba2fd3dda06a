"""What every page is made of: the blueprint, how a page or a part of it is shown, and the way back after an action.

A page's template has one block `live`: the part that changes. The script asks for that alone, by the header
`X-Part`, so that a refresh is the same view and costs one small answer, or none where nothing has changed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import flask
import jinja2
from flask_bootstrap import Bootstrap5
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError

from app import clock, errors
from web import auth
from web.ui import showing

HERE = Path(__file__).parent
MAX_FORM = 256 * 1024
"""Bytes of a form: arguments may have 32 KiB, and each of their characters may be sent as nine."""

PART = "X-Part"
"""The header that names the block of the template that is wanted."""

PARTS = frozenset({"live", "outlook", "load", "arguments"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; "  # Bootstrap's arrows and ticks are data
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

blp = flask.Blueprint(
    "ui", __name__, template_folder=str(HERE / "templates"), static_folder=str(HERE / "static"), static_url_path="/ui"
)
csrf = CSRFProtect()


def register(app: flask.Flask) -> None:
    """Adds the pages to `app`."""
    app.config |= {
        "BOOTSTRAP_SERVE_LOCAL": True,
        "SEND_FILE_MAX_AGE_DEFAULT": timedelta(days=365),  # `asset` gives what changes another address
        "WTF_CSRF_CHECK_DEFAULT": False,  # the API has no cookies to be abused; `protect` below checks the pages
        "WTF_CSRF_SECRET_KEY": [*app.config["SECRET_KEY_FALLBACKS"], app.secret_key],  # the last one signs
        "WTF_CSRF_TIME_LIMIT": None,  # a form that stood open over lunch is as good as the session
    }
    Bootstrap5(app)
    csrf.init_app(app)
    app.jinja_env.undefined = jinja2.StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters |= showing.FILTERS
    app.jinja_env.tests |= showing.TESTS
    app.jinja_env.globals |= showing.GLOBALS | {
        "may": auth.may,
        "url_with": url_with,
        "asset": asset,
        "server_time": clock.now,
    }
    app.register_blueprint(blp)
    app.jinja_env.globals["ui"] = app.jinja_env.get_template("ui/_macros.html").module


@blp.before_request
def protect() -> None:
    """Refuses what a page of somebody else has sent, and what is no form of ours. Raises Malformed or TooLarge."""
    flask.request.max_content_length = MAX_FORM
    try:
        csrf.protect()
    except CSRFError as exc:
        raise errors.Malformed("This form is not of your session any more: go back, reload it, send it again.") from exc


@blp.after_request
def harden(response: flask.Response) -> flask.Response:
    """Lets a page load nothing but ours, and nobody frame it."""
    response.headers["Content-Security-Policy"] = POLICY
    if flask.request.endpoint != "ui.static":
        response.headers.setdefault("Cache-Control", "no-cache, private")
        response.vary.add(PART)
        response.vary.add("Cookie")
    return response


def page(template: str, status: int = 200, **shown: Any) -> flask.Response:
    """A page, or the part of it that the request names."""
    app = flask.current_app
    found = app.jinja_env.get_template(f"ui/{template}.html")
    part = flask.request.headers.get(PART)
    if part in PARTS and part in found.blocks:
        app.update_template_context(shown)
        text = "".join(found.blocks[part](found.new_context(shown)))
    else:
        text = flask.render_template(found, **shown)
    response = flask.make_response(text, status)
    if flask.request.method == "GET" and status == 200:  # noqa: PLR2004
        response.add_etag()
        response.make_conditional(flask.request)
    return response


def done(said: str, otherwise: str) -> flask.Response:
    """Says what was done, on the page that the button stood on; `otherwise` where it does not say which."""
    return lead(said, local(flask.request.form.get("back")) or otherwise)


def lead(said: str, address: str) -> flask.Response:
    """Says what was done, on this page."""
    flask.flash(said)
    return flask.make_response(flask.redirect(address, 303))  # werkzeug's is a plain response


def local(address: str | None) -> str | None:
    """An address of ours, or None: a form must not lead a person to another host."""
    if not address or not address.startswith("/") or address.startswith(("//", "/\\")):
        return None
    return address if not urlsplit(address).netloc and address.isprintable() else None


def asset(endpoint: str, name: str) -> str:
    """The address of a file of ours, with a mark of what it holds: so a browser may keep it for ever."""
    return flask.url_for(endpoint, filename=name, v=_mark(endpoint, name))


@cache
def _mark(endpoint: str, name: str) -> str:
    blueprint = flask.current_app.blueprints[endpoint.partition(".")[0]]
    assert blueprint.static_folder is not None
    return hashlib.sha256((Path(blueprint.static_folder) / name).read_bytes()).hexdigest()[:12]


def asked() -> dict[str, str]:
    """The query of this request; what a form left empty is not asked for."""
    return {name: value for name, value in flask.request.args.items() if value}


def url_with(**changes: Any) -> str:
    """This page's address with some of its query changed; None takes one out."""
    given = {name: value for name, value in (asked() | changes).items() if value is not None}
    return flask.url_for(flask.request.endpoint or "ui.overview", **(flask.request.view_args or {}), **given)


def flat(problems: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Problems of fields, however deep: each sentence with the way to its field."""
    if isinstance(problems, Mapping):
        for name, inner in problems.items():
            yield from flat(inner, (*path, str(name)))
    else:
        for sentence in problems:
            yield path, str(sentence)


def lines(problems: Any) -> list[str]:
    """The same as sentences that name the field."""
    return [f"{'.'.join(path)}: {sentence}" if path else sentence for path, sentence in flat(problems)]
