"""The one handler: every error becomes `{"code", "status", "message", "errors"}`, with its status and headers.

Where a page was asked for, a page says the same.
"""

import logging
from http import HTTPStatus

import flask
from werkzeug.exceptions import HTTPException

from app import errors
from web import auth
from web.ui import session

CODES = {error.status: error.code for error in errors.PunctualError.__subclasses__()}

SENTENCES = {
    HTTPStatus.NOT_FOUND: errors.NotFound().message,
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method; the header Allow says which it takes.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: errors.TooLarge().message,
    HTTPStatus.TOO_MANY_REQUESTS: errors.TooMany().message,
}
"""What is said of the framework's own errors, where its words are not for readers of an API."""

log = logging.getLogger(__name__)


def register(app: flask.Flask) -> None:
    """Makes `app` answer every error in one form."""
    app.register_error_handler(Exception, handle)


def handle(exc: Exception) -> flask.Response:
    """The answer to whatever a view or the framework raised."""
    if isinstance(exc, HTTPException):
        return _from_framework(exc)
    if isinstance(exc, errors.PunctualError):
        return _from_ours(exc)
    log.error("%s %s failed, the client gets a 500", flask.request.method, flask.request.path, exc_info=exc)
    return _from_ours(errors.PunctualError())


def _from_ours(exc: errors.PunctualError) -> flask.Response:
    response = _answer(exc.code, exc.status, exc.message, exc.errors)
    if isinstance(exc, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _from_framework(exc: HTTPException) -> flask.Response:
    status = HTTPStatus(exc.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    code = CODES.get(status) or status.phrase.lower().replace(" ", "_")
    response = _answer(code, status, SENTENCES.get(status) or exc.description or status.phrase, {})
    response.headers.extend([(name, value) for name, value in exc.get_headers() if not name.startswith("Content-")])
    return response


def _answer(code: str, status: int, message: str, fields: errors.FieldErrors) -> flask.Response:
    if _wants_page():
        return flask.make_response(session.refuse(status, message, fields))
    response = flask.jsonify(code=code, status=status, message=message, errors=fields)
    response.status_code = status
    return response


def _wants_page() -> bool:
    """Whether a page was asked for; under an unknown address, whether it is a browser that asks."""
    if flask.request.endpoint is not None or flask.request.path.startswith(auth.API):
        return flask.request.blueprint == auth.PAGES
    return flask.request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
