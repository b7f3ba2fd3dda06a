"""flask-smorest's blueprint, typed, and with the words that the views' decorators use. Knows no resource."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import flask_smorest
import marshmallow as ma

from web import auth, parser

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

    def serves(self, method: str, rule: str) -> Decorator:
        """The view answers `method` at `rule`, to whom `web.auth` lets in."""

        def decorate(view: View) -> View:
            public = f"{self.name}.{view.__name__}" in auth.PUBLIC
            described = self.doc(security=[])(view) if public else view
            self.route(rule, methods=[method])(described)
            return view

        return decorate

    def takes(self, schema: Schema, location: str = "json", *, required: bool = True) -> Decorator:
        """The view's next argument is what `schema` loads from the body, the query or the headers."""
        decorator: Decorator = self.arguments(schema, location=location, required=required)
        return decorator

    def gives(self, status: int, schema: Schema | None = None, *, headers: tuple[str, ...] = ()) -> Decorator:
        """What the view returns is answered with this status, dumped by `schema`."""
        described = {name: {"schema": {"type": "string"}} for name in headers}
        decorator: Decorator = self.response(status, schema, headers=described or None)
        return decorator

    def refuses(self, *statuses: int) -> Decorator:
        """The errors of its own that the view answers with, besides those that any view may."""

        def decorate(view: View) -> View:
            for status in statuses:
                view = self.alt_response(status, HTTPStatus(status).name)(view)
            return view

        return decorate
