"""Signing in with a key, and out; and what a page says where something went wrong."""

from http import HTTPStatus

import flask

from app import errors
from web import auth
from web.ui.pages import blp, harden, lines, local, page


@blp.route("/sign-in", methods=["GET", "POST"])
def sign_in() -> flask.typing.ResponseReturnValue:
    """Asks for a key, and keeps a session for whoever has one."""
    wrong = False
    if flask.request.method == "POST":
        if auth.open_session(flask.request.form.get("key", "").strip()):
            return flask.redirect(local(flask.request.form.get("back")) or flask.url_for("ui.overview"), 303)
        wrong = True
    back = flask.request.form.get("back") or flask.request.args.get("back")
    return page("sign_in", status=401 if wrong else 200, wrong=wrong, back=local(back) or "/")


@blp.post("/sign-out")
def sign_out() -> flask.typing.ResponseReturnValue:
    """Ends the session."""
    flask.session.clear()
    return flask.redirect(flask.url_for("ui.sign_in"), 303)


def refuse(status: int, message: str, problems: errors.FieldErrors) -> flask.typing.ResponseReturnValue:
    """What a page answers in place of an error: without a session the way to one, else what happened."""
    if status == HTTPStatus.UNAUTHORIZED:
        here = flask.request.full_path.rstrip("?") if flask.request.method == "GET" else None
        return flask.redirect(flask.url_for("ui.sign_in", back=local(here)), 303)
    shown = {"phrase": HTTPStatus(status).phrase, "message": message, "problems": lines(problems)}
    return harden(
        page("error", status=status, **shown)
    )  # an unknown address belongs to no blueprint, which would do it
