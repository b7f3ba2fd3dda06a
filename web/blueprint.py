"""flask-smorest's blueprint, typed, and with the words that the views' decorators use. Knows no resource."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import flask_smorest
import marshmallow as ma

from web import auth, parser, repeats

View = TypeVar("View", bound=Callable[..., Any])
Schema = type[ma.Schema] | ma.Schema


class Decorator(Protocol):
    """Keeps a view's type."""

    def __call__(self, view: View, /) -> View: ...


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]
    """Routes of one resource under the base, described for the OpenAPI document by their decorators."""

    ARGUMENTS_PARSER = parser.Parser()

    def __init__(self, name: str, description: str, *, base: str = "/api/v1") -> None:
        super().__init__(name, __name__, url_prefix=base, description=description)
        self._prepare_doc_cbks.append(_describe_access)

    def serves(self, method: str, rule: str, *, keeps_answer: bool = True) -> Decorator:
        """The view answers `method` at `rule`, to whom `web.auth` lets in. What a POST answers is kept for a repeat of
        it, but where the answer is a secret."""

        def decorate(view: View) -> View:
            role = auth.RULES.get(f"{self.name}.{view.__name__}")
            described = view if role else self.doc(security=[])(view)
            if method == "POST":
                described = repeats.once(described) if keeps_answer else repeats.never(described)
            access = {"role": role, "repeats": method == "POST" and keeps_answer}
            described.__dict__.setdefault("_apidoc", {})["access"] = access
            self.route(rule, methods=[method])(described)
            return view

        return decorate

    def takes(self, schema: Schema, location: str = "json", *, required: bool = True) -> Decorator:
        """The view's next argument is what `schema` loads from the body, the query or the headers."""
        decorator = self.arguments(schema, location=location, required=required)

        def decorate(view: View) -> View:
            taking: View = decorator(view)
            if location == "json":  # who reads the body before this view does must know how long it may be
                taking.__dict__["max_body"] = getattr(schema, "max_body", 0)
            return taking

        return decorate

    def gives(self, status: int, schema: Schema | None = None, *, headers: tuple[str, ...] = ()) -> Decorator:
        """What the view returns is answered with this status, dumped by `schema`."""
        described = {name: {"schema": {"type": "string"}} for name in headers}
        decorator: Decorator = self.response(status, schema, headers=described or None)
        return decorator

    def or_gives(self, status: int, schema: Schema) -> Decorator:
        """The view may return a response of its own instead, of this status, dumped by `schema`."""
        decorator: Decorator = self.alt_response(status, schema=schema, description=HTTPStatus(status).phrase)
        return decorator

    def streams(self, content_type: str) -> Decorator:
        """What the view returns is a response of this type, made while it is sent."""
        described = {"schema": {"type": "string"}, "content_type": content_type, "description": "Line by line."}
        decorator: Decorator = self.alt_response(200, **described)
        return decorator

    def refuses(self, *statuses: int) -> Decorator:
        """The errors of its own that the view answers with, besides those that any view may."""

        def decorate(view: View) -> View:
            for status in statuses:
                view = self.alt_response(status, HTTPStatus(status).name)(view)
            return view

        return decorate


def _describe_access(doc: dict[str, Any], doc_info: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Says in the document which role an operation takes, and that a repeat of it may be answered as the first."""
    access = doc_info.get("access", {})
    if access.get("role"):
        doc["description"] = f"{doc.get('description', '')}\n\nTakes the role `{access['role']}`.".strip()
    if access.get("repeats"):
        doc.setdefault("parameters", []).append(repeats.PARAMETER)
    return doc
