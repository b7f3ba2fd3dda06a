"""The OpenAPI document and the page that shows it, which needs nothing from the internet."""

from pathlib import Path
from typing import Any

import flask
import flask_smorest
import flask_swagger_ui
from apispec.ext.marshmallow import MarshmallowPlugin

from web import schemas

ASSETS = Path(flask_swagger_ui.__file__).parent / "dist"

CONFIG = {
    "API_TITLE": "Punctual",
    "API_VERSION": "v1",
    "OPENAPI_VERSION": "3.1.0",
    "OPENAPI_URL_PREFIX": "/api",
    "OPENAPI_JSON_PATH": "v1/openapi.json",
    "OPENAPI_SWAGGER_UI_PATH": "docs",
    "OPENAPI_SWAGGER_UI_URL": "/api/docs/assets/",
    "OPENAPI_SWAGGER_UI_CONFIG": {"validatorUrl": None, "deepLinking": True},
    "API_SPEC_OPTIONS": {
        "info": {"description": "A distributed task scheduler. Times are RFC 3339 with an offset; answers are UTC."},
        "security": [{"key": []}],
    },
}

TIME = {"type": "string", "format": "date-time"}
MAYBE_TIME = {"type": ["string", "null"], "format": "date-time"}
ZONE = {"type": ["string", "null"], "default": "UTC", "description": "An IANA zone.", "examples": ["Europe/Paris"]}


def line(example: str) -> dict[str, Any]:
    """A text that may not be empty."""
    return {"type": "string", "minLength": 1, "examples": [example]}


def kind(name: str, *required: str, **fields: Any) -> dict[str, Any]:
    """One kind of schedule."""
    return {
        "title": name,
        "type": "object",
        "properties": {"type": {"const": name}, **fields},
        "required": ["type", *required],
        "additionalProperties": False,
    }


SCHEDULE = {
    "oneOf": [
        kind("now", at=MAYBE_TIME),
        kind("once", "at", at=TIME),
        kind("cron", "expression", expression=line("0 9 * * MON-FRI"), timezone=ZONE),
        kind("interval", "every", every={"type": "number", "minimum": 1}, anchor=MAYBE_TIME),
        kind(
            "rrule",
            "rule",
            "starts",
            rule=line("FREQ=MONTHLY;BYDAY=-1FR"),
            starts=TIME,
            timezone=ZONE,
        ),
    ],
}
"""As `app.schedules` reads it. Given as raw JSON Schema, as no marshmallow schema reads it."""

assets = flask.Blueprint("docs", __name__)


class Api(flask_smorest.Api):  # type: ignore[misc]
    """flask-smorest's extension, without its own error handler: `web.errors` has the only one."""

    ERROR_SCHEMA = schemas.ErrorSchema

    def _register_error_handlers(self) -> None:
        pass


def register(app: flask.Flask) -> Api:
    """Describes `app` in a document and shows it; the blueprints are then registered with the Api."""
    app.config.update(CONFIG)
    api = Api(app, spec_kwargs={"marshmallow_plugin": MarshmallowPlugin(schema_name_resolver=_name)})
    api.spec.components.security_scheme("key", {"type": "http", "scheme": "bearer"})
    api.spec.components.schema("Schedule", SCHEDULE)
    app.register_blueprint(assets)
    return api


@assets.get("/api/docs/assets/<path:name>")
def asset(name: str) -> flask.Response:
    """Swagger UI's own files, from the package that brings them."""
    return flask.send_from_directory(ASSETS, name, max_age=3600)


def _name(schema: Any) -> str:
    """A schema's name in the document: its class's, without the last word."""
    cls = schema if isinstance(schema, type) else type(schema)
    return cls.__name__.removesuffix("Schema")
