"""Reads a request's body, query and headers, strictly: what could be read in two ways is refused."""
# ruff: noqa: ARG002 - webargs' own signatures

import json
import math
from typing import Any, NoReturn, cast

import flask
import marshmallow as ma
from webargs.flaskparser import FlaskParser, is_json_request

from app import errors, schemas, settings


class Parser(FlaskParser):
    """Says Malformed where a request cannot be read, and Invalid, field by field, where its schema refuses it."""

    DEFAULT_UNKNOWN_BY_LOCATION = FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION | {"query": ma.RAISE}

    def load_json(self, req: flask.Request, schema: ma.Schema) -> Any:
        """The body, a JSON object. A schema's `empty_body` says that none is as good as `{}`; `max_body`, how large."""
        body = read(req, max(settings.load().PUNCTUAL_MAX_BODY, getattr(schema, "max_body", 0)))
        if not body and getattr(schema, "empty_body", False):
            return {}
        if not is_json_request(req):
            raise errors.Malformed("The body must be JSON, sent with Content-Type: application/json.")
        return parse(body)

    def load_querystring(self, req: flask.Request, schema: ma.Schema) -> Any:
        """The query. A parameter that is empty counts as not given, as forms send those that were left out."""
        return {name: value for name, value in req.args.items() if value}

    def load_headers(self, req: flask.Request, schema: ma.Schema) -> Any:
        """Only the headers that the schema names: all the others are not the view's."""
        names = [field.data_key or name for name, field in schema.fields.items()]
        return {name: req.headers[name] for name in names if name in req.headers}

    def handle_error(self, error: ma.ValidationError, req: flask.Request, schema: ma.Schema, **_: Any) -> NoReturn:
        [by_field] = cast("dict[str, Any]", error.messages).values()  # webargs wraps them in the place's name
        raise errors.Invalid(errors={field: schemas.fold(inner) for field, inner in by_field.items()}) from error


def read(req: flask.Request, limit: int) -> bytes:
    """The body, of `limit` bytes at most. Raises TooLarge.

    One byte more is let in to be noticed: werkzeug cuts a chunked body off at its limit without a word.
    """
    req.max_content_length = limit + 1
    body = req.get_data()
    if len(body) > limit:
        raise errors.TooLarge(f"The body may have {limit:,} bytes at most.")
    return body


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that the body holds. Raises Malformed."""
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError as exc:
        raise errors.Malformed("The body is nested too deep.") from exc
    except ValueError as exc:  # not UTF-8, not JSON, or a number of thousands of digits
        raise errors.Malformed("The body is not JSON: it must be valid JSON in UTF-8.") from exc
    if not isinstance(value, dict):
        raise errors.Malformed("The body must be a JSON object.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The last of two equal keys would win silently, and other readers of the same body may take the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise errors.Malformed("The body names the same key twice in one object.")
    return found


def _refuse(constant: str) -> NoReturn:
    raise errors.Malformed(f"The body is not JSON: {constant} is not a JSON number.")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise errors.Malformed("The body holds a number that is too large.")
    return value
