"""A task, and what a client may ask of one. Loading gives the `fields` that the use cases of `app.tasks` take."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import marshmallow as ma
from marshmallow import fields, validate

from app import models, queries, settings
from app.fields import Choice, Flag, Instant, JsonArray, JsonObject, Seconds, Text, Whole
from app.schemas.forms import Fields, RowSchema, Schema
from app.states import Catchup, Overlap, TaskState, Trouble

MAX_ARGUMENTS = 32 * 1024
"""Bytes of args and kwargs together, as JSON."""

MAX_LABELS = 32
MAX_COUNT = 2**31 - 1
MAX_ADDRESSES = 10
DAY = 86_400
YEAR = 366 * DAY
VISIBLE = r"[\s\S]*\S[\s\S]*"
VISIBLE_SAYS = "Must hold a visible character."
NAME = r"(?!punctual\.)[\s\S]*\S[\s\S]*"
NAME_SAYS = "Must hold a visible character, and not begin with `punctual.`, as the names of Punctual's own tasks do."
QUEUE = r"(?!amq\.|celery|punctual|unacked|_kombu)[A-Za-z0-9_.\-]{1,64}"
QUEUE_SAYS = (
    "Must be 1 to 64 of the characters A-Z, a-z, 0-9, _ . and -,"
    " and not begin with amq., celery, punctual, unacked or _kombu, which are the broker's and ours."
)
WEBHOOK = r"https?://(?![^/?#]*@)[!-~]+"
WEBHOOK_SAYS = "Must be an address that begins with http:// or https://, without spaces and without a password."
ADDRESS = settings.ADDRESS.pattern
LABEL_KEY = r"[^:]{1,63}"
LABEL_KEY_SAYS = "Must be 1 to 63 characters without a colon."


def check_labels(labels: Fields) -> None:
    """Raises ValidationError where there are too many."""
    if len(labels) > MAX_LABELS:
        raise ma.ValidationError(f"May hold {MAX_LABELS} labels at most.")


class SizedSchema(RowSchema):
    """Bounds args and kwargs together, where a schema has them."""

    @ma.validates_schema(skip_on_field_errors=True)
    def _check_size(self, data: Fields, **_: Any) -> None:
        given = {name: data[name] for name in ("args", "kwargs") if data.get(name)}
        if len(json.dumps([*given.values()], ensure_ascii=False).encode()) > MAX_ARGUMENTS:
            raise ma.ValidationError(f"args and kwargs may be {MAX_ARGUMENTS} bytes of JSON together.", [*given][-1])


class CatchupSchema(RowSchema):
    """What becomes of slots that were missed."""

    policy = Choice(Catchup, load_default=str(Catchup.LATEST))
    window = Seconds(
        0,
        YEAR,
        allow_none=True,
        load_default=None,
        metadata={"description": "How far back, in seconds; null is the default for the kind of schedule."},
    )


class RetrySchema(RowSchema):
    """What becomes of an attempt that failed."""

    max_attempts = Whole(1, 100, load_default=1)
    backoff = Seconds(0, DAY, load_default=timedelta(seconds=5))
    backoff_max = Seconds(0, DAY, load_default=timedelta(seconds=600))
    jitter = Flag(load_default=True)


class NotifySchema(RowSchema):
    """Who is told of a task's incidents, and of which. Where neither a webhook nor an address is given, those whom the
    settings name; an empty `on`: nobody."""

    on = fields.List(
        Choice(Trouble),
        load_default=lambda: [str(kind) for kind in Trouble],
        validate=validate.Length(max=len(Trouble)),
        error_messages={"invalid": "Must be an array."},
        metadata={"default": [str(kind) for kind in Trouble], "uniqueItems": True},
    )
    webhook = Text(
        0, 2000, pattern=WEBHOOK, allow_none=True, load_default=None, error_messages={"pattern": WEBHOOK_SAYS}
    )
    email = fields.List(
        Text(pattern=ADDRESS, error_messages={"pattern": "Must be an address such as ops@example.com."}),
        load_default=list,
        validate=validate.Length(max=MAX_ADDRESSES),
        error_messages={"invalid": "Must be an array."},
        metadata={"default": [], "uniqueItems": True},
    )

    @ma.validates("on", "email")
    def _check_doubles(self, value: list[str], **_: Any) -> None:
        if len({*value}) < len(value):
            raise ma.ValidationError("May name each one once.")

    @ma.validates("webhook")
    def _check_webhook(self, value: str | None, **_: Any) -> None:
        try:
            readable = value is None or (urlsplit(value).hostname and urlsplit(value).port != 0)
        except ValueError:
            readable = False
        if not readable:
            raise ma.ValidationError("Must name a host, and a port from 1 to 65535 where it names one.")

    @ma.validates("email")
    def _check_mails(self, value: list[str], **_: Any) -> None:
        if value and not settings.load().PUNCTUAL_MAIL_FROM:  # the server's address, a secret, is the workers' to know
            raise ma.ValidationError("This Punctual sends no mails: PUNCTUAL_MAIL_FROM is not set.")


_CATCHUP: Fields = CatchupSchema().load({})
_RETRY: Fields = RetrySchema().load({})
"""Loaded once: to make a schema costs more than all else that is done with a task."""


class TaskSchema(SizedSchema):
    """A task."""

    id = fields.UUID(dump_only=True)
    name = Text(1, 200, pattern=NAME, allow_none=True, load_default=None, error_messages={"pattern": NAME_SAYS})
    description = Text(0, 2000, load_default="")
    labels = fields.Dict(
        keys=Text(pattern=LABEL_KEY, error_messages={"pattern": LABEL_KEY_SAYS}),
        values=Text(0, 255),
        load_default=dict,
        validate=check_labels,
        error_messages={"invalid": "Must be an object."},
        metadata={"default": {}, "maxProperties": MAX_LABELS},
    )
    target = Text(1, 255, required=True, metadata={"example": "http.request"})
    args = JsonArray(load_default=list, metadata={"default": []})
    kwargs = JsonObject(load_default=dict, metadata={"default": {}})
    queue = Text(pattern=QUEUE, load_default="default", error_messages={"pattern": QUEUE_SAYS})
    priority = Whole(0, 9, load_default=5)
    schedule = JsonObject(required=True, metadata={"allOf": [{"$ref": "#/components/schemas/Schedule"}]})
    starts_at = Instant(allow_none=True, load_default=None)
    ends_at = Instant(allow_none=True, load_default=None)
    max_runs = Whole(1, MAX_COUNT, allow_none=True, load_default=None)
    jitter = Seconds(0, 3600, load_default=timedelta(0))
    overlap = Choice(Overlap, load_default=str(Overlap.SKIP))
    catchup = fields.Nested(CatchupSchema, load_default=lambda: dict(_CATCHUP))
    retry = fields.Nested(RetrySchema, load_default=lambda: dict(_RETRY))
    timeout = Seconds(1, DAY, load_default=timedelta(seconds=300))
    pause_after_failures = Whole(
        1,
        1000,
        allow_none=True,
        load_default=None,
        metadata={"description": "How many runs in a row must fail for the task to be paused; null: never."},
    )
    notify = fields.Nested(
        NotifySchema,
        allow_none=True,
        load_default=None,
        metadata={"description": "Who is told of its incidents, and of which; null: as the settings have it."},
    )
    state = Choice(TaskState, dump_only=True)
    note = fields.String(dump_only=True, allow_none=True)
    next_run_at = Instant(dump_only=True, allow_none=True)
    last_run_at = Instant(dump_only=True, allow_none=True)
    created_at = Instant(dump_only=True)
    updated_at = Instant(dump_only=True)
    version = fields.Integer(dump_only=True)

    @ma.validates_schema(skip_on_field_errors=True)
    def _check_bounds(self, data: Fields, **_: Any) -> None:
        starts, ends = data.get("starts_at"), data.get("ends_at")
        if starts and ends and ends <= starts:
            raise ma.ValidationError("Must be later than starts_at.", "ends_at")

    @ma.pre_dump
    def _nest(self, task: models.Task, **_: Any) -> Fields:
        return self._row(task)

    def _row(self, task: models.Task) -> Fields:
        derived = {"catchup", "retry", "target_available"}
        flat = {name: getattr(task, name) for name in self.fields if name not in derived}
        catchup = {"policy": task.catchup_policy, "window": task.catchup_window}
        retry = {
            "max_attempts": task.max_attempts,
            "backoff": task.backoff,
            "backoff_max": task.backoff_max,
            "jitter": task.backoff_jitter,
        }
        return flat | {"catchup": catchup, "retry": retry}


class TaskChangeSchema(TaskSchema):
    """What changes of a task: only what is given."""

    name = Text(1, 200, pattern=NAME, error_messages={"pattern": NAME_SAYS})

    def __init__(self, **options: Any) -> None:
        super().__init__(partial=True, **options)

    def on_bind_field(self, _name: str, field_obj: fields.Field[Any]) -> None:
        """An absent field means no change, so the document may not speak of defaults."""
        # a new dict: fields are copied per schema, their metadata is not
        field_obj.metadata = {key: value for key, value in field_obj.metadata.items() if key != "default"}
        field_obj.load_default = ma.missing


class TaskDetailSchema(TaskSchema):
    """A task, and whether its target can be called."""

    target_available = fields.Boolean(
        dump_only=True,
        allow_none=True,
        metadata={
            "description": "Whether a live worker offers its target right now; else its runs wait. "
            "null: it is another app's, which does not say."
        },
    )

    @ma.pre_dump
    def _nest(self, detail: queries.TaskDetail, **_: Any) -> Fields:
        return self._row(detail.task) | {"target_available": detail.target_available}


class PauseSchema(Schema):
    """Why a task is paused."""

    empty_body = True
    note = Text(0, 1000, allow_none=True, load_default=None)


class ResumeSchema(Schema):
    """From where a task goes on."""

    empty_body = True
    since = Choice(
        ("now", "last"),
        data_key="from",
        load_default="now",
        metadata={"description": "`last`: slots that fell into the pause are made up for, as `catchup` says."},
    )


class RunNowSchema(SizedSchema):
    """Arguments for one run alone; null or absent: the task's own."""

    empty_body = True
    args = JsonArray(allow_none=True, load_default=None)
    kwargs = JsonObject(allow_none=True, load_default=None)


class BackfillSchema(Schema):
    """A span of the past; both ends count."""

    since = Instant(required=True)
    until = Instant(required=True)

    @ma.validates_schema(skip_on_field_errors=True)
    def _check_order(self, data: Fields, **_: Any) -> None:
        if data["until"] < data["since"]:
            raise ma.ValidationError("Must not be before since.", "until")
