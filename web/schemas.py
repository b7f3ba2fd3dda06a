"""What only REST knows: queries, headers, bulk, pages and errors."""
# ruff: noqa: ARG002, RUF012 - marshmallow's own signatures and names

import re
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from app import errors
from app.fields import Choice, Instant, JsonObject, Text, Whole
from app.schemas import RunSchema, Schema, TargetSchema, TaskSchema
from app.states import RunState, TaskState

MAX_BULK = 1000
MAX_BULK_BODY = 8 * 1024 * 1024
MAX_LIMIT = 200
MAX_COUNT = 100
CURSOR = 2_000
"""Characters of a cursor, with room to spare: it may hold a name."""


class Digits(fields.Integer):
    """An integer in a query: digits and nothing else that Python would read as one."""

    default_error_messages = {"invalid": "Must be an integer."}

    def __init__(self, low: int, high: int, **options: Any) -> None:
        super().__init__(validate=validate.Range(min=low, max=high), **options)

    def _validated(self, value: Any) -> int:
        if not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise self.make_error("invalid", input=value)
        return int(value)


class Label(Text):
    """`key:value`, as a pair."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        key, colon, wanted = super()._deserialize(value, attr, data, **kwargs).partition(":")
        if not (key and colon):
            raise ma.ValidationError("Must be key:value.")
        return key, wanted


class Version(fields.String):
    """The version that an If-Match header names; None where any will do, 0 where it can match none."""

    def _deserialize(self, value: str, attr: str | None, data: Any, **kwargs: Any) -> Any:
        tag = value.strip()
        if tag == "*":
            return None
        if not re.fullmatch(r'(W/)?"[\x21\x23-\x7e]*"', tag):
            raise errors.Malformed('If-Match must be one ETag in its quotes, as an answer gave it: "3".')
        ours = re.fullmatch(r'"([1-9][0-9]{0,9})"', tag)  # a weak tag never matches here, says RFC 9110
        return int(ours[1]) if ours else 0


class IfMatchSchema(Schema):
    """The version that a change is meant for."""

    version = Version(
        data_key="If-Match",
        metadata={"description": "Changes nothing, and answers 412, unless this is still the task's ETag."},
    )


class PageQuerySchema(Schema):
    """Which part of a list."""

    limit = Digits(1, MAX_LIMIT, load_default=50)
    after = Text(0, CURSOR, load_default="", metadata={"description": "The `next` of the page before."})


class TasksQuerySchema(PageQuerySchema):
    """Which tasks."""

    q = Text(0, 200, metadata={"description": "Part of a name or description."})
    state = Choice(TaskState)
    target = Text(0, 255)
    label = Label(0, 400, metadata={"description": "`key:value`"})


class TaskRunsQuerySchema(PageQuerySchema):
    """Which runs of a task."""

    state = Choice(RunState)
    since = Instant(metadata={"description": "The earliest slot; write + as %2B."})
    until = Instant(metadata={"description": "The latest slot."})


class RunsQuerySchema(TaskRunsQuerySchema):
    """Which runs."""

    task_id = fields.UUID(error_messages={"invalid_uuid": "Must be a task's id, a UUID."})


class CountQuerySchema(Schema):
    """How many slots."""

    count = Digits(1, MAX_COUNT, load_default=5)


class BackfilledSchema(Schema):
    """What a backfill made."""

    runs = fields.Integer(metadata={"description": "New runs; they start within seconds."})


class BulkSchema(Schema):
    """Tasks to be registered together."""

    max_body = MAX_BULK_BODY
    items = fields.List(
        fields.Nested(TaskSchema),
        required=True,
        validate=validate.Length(min=1, max=MAX_BULK),
        error_messages={"invalid": "Must be an array."},
    )

    @ma.pre_load
    def _count(self, data: Any, **_: Any) -> Any:
        """Counted before they are read: millions of broken items would keep a worker busy."""
        items = data.get("items")
        if isinstance(items, list) and len(items) > MAX_BULK:
            raise ma.ValidationError(f"May hold {MAX_BULK} tasks at most.", "items")
        return data


class TasksSchema(Schema):
    """Tasks that were registered together."""

    items = fields.List(fields.Nested(TaskSchema))


class PreviewSchema(Schema):
    """A schedule to look at."""

    schedule = JsonObject(required=True, metadata={"allOf": [{"$ref": "#/components/schemas/Schedule"}]})
    count = Whole(1, MAX_COUNT, load_default=5)


class SlotsSchema(Schema):
    """The next slots, soonest first."""

    slots = fields.List(Instant())


class ForecastSchema(SlotsSchema):
    """A schedule in words, and when it is due."""

    description = fields.String()
    warnings = fields.List(fields.String())

    class Meta(Schema.Meta):
        fields = ("description", "slots", "warnings")


class PageSchema(Schema):
    """A part of a list; `next` as `after` gives the part behind it, null says that there is none."""

    next = fields.String(allow_none=True)

    class Meta(Schema.Meta):
        fields = ("items", "next")


class TaskPageSchema(PageSchema):
    """Tasks, newest first."""

    items = fields.List(fields.Nested(TaskSchema))


class RunPageSchema(PageSchema):
    """Runs, newest slot first."""

    items = fields.List(fields.Nested(RunSchema))


class TargetPageSchema(PageSchema):
    """Targets, by name."""

    items = fields.List(fields.Nested(TargetSchema))


class NodeSchema(Schema):
    """A process of the cluster."""

    name = fields.String(metadata={"description": "By which it answers Celery's remote control."})
    present = fields.Boolean(metadata={"description": "Whether it was seen in the last 5 s."})
    started_at = Instant()
    seen_at = Instant()


class BeatSchema(NodeSchema):
    """A beat."""

    role = fields.String(metadata={"description": "`leader` where it holds a bucket, else `standby`."})
    buckets = fields.List(fields.Integer())
    last_tick_age = fields.Float(metadata={"description": "Seconds since its last tick."})


class WorkerSchema(NodeSchema):
    """A worker."""

    queues = fields.List(fields.String())
    processes = fields.Integer()
    running = fields.Integer(metadata={"description": "Runs and Celery calls in hand."})
    versions = fields.Dict(keys=fields.String(), values=fields.String())


class QueueSchema(Schema):
    """A queue."""

    name = fields.String()
    depth = fields.Integer(
        allow_none=True,
        metadata={"description": "Messages that no worker has fetched; null where the broker or the queue is away."},
    )
    waiting = fields.Integer(metadata={"description": "Runs that were fired and that no worker has claimed."})
    oldest_age = fields.Float(allow_none=True, metadata={"description": "Seconds for which the first has waited."})
    processes = fields.Integer(metadata={"description": "Of the workers that consume it now."})


class TaskAsideSchema(Schema):
    """A task that Punctual has paused."""

    id = fields.UUID()
    name = fields.String()
    reason = fields.String()
    at = Instant()


class QueueAsideSchema(Schema):
    """A queue that cannot be declared: its runs stay pending."""

    name = fields.String()
    reason = fields.String()
    beat = fields.String()


class EntryAsideSchema(Schema):
    """What lay among the entries in Redis and is none."""

    bucket = fields.Integer()
    member = fields.String()
    at = fields.String()
    beat = fields.String()


class AsideSchema(Schema):
    """What was set aside so that its neighbours go on."""

    tasks = fields.List(fields.Nested(TaskAsideSchema))
    queues = fields.List(fields.Nested(QueueAsideSchema))
    entries = fields.List(fields.Nested(EntryAsideSchema))


class ClusterSchema(Schema):
    """Who is there, what waits, and what was set aside."""

    beats = fields.List(fields.Nested(BeatSchema))
    workers = fields.List(fields.Nested(WorkerSchema))
    queues = fields.List(fields.Nested(QueueSchema))
    set_aside = fields.Nested(AsideSchema)


class HealthSchema(Schema):
    """How a process is."""

    status = fields.String()


class ReadinessSchema(HealthSchema):
    """How the stores are."""

    stores = fields.Dict(keys=fields.String(), values=fields.String())


class ErrorSchema(Schema):
    """What went wrong."""

    code = fields.String(required=True, metadata={"example": "invalid"})
    status = fields.Integer(required=True, metadata={"example": 422})
    message = fields.String(required=True)
    errors = fields.Dict(
        required=True,
        metadata={
            "description": "Per field a list of sentences, or the same again for the fields inside it.",
            "example": {"schedule": {"expression": ["…"]}},
        },
    )
