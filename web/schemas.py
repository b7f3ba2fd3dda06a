"""What only REST knows: queries, headers, bulk, pages and errors."""
# ruff: noqa: ARG002, RUF012 - marshmallow's own signatures and names

import re
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from app import errors, settings
from app.bulk import MAX_BULK
from app.fields import Choice, Instant, JsonObject, Text, Whole
from app.schemas import (
    IncidentSchema,
    PauseSchema,
    ResumeSchema,
    RunSchema,
    Schema,
    TargetSchema,
    TaskSchema,
)
from app.states import RunState, TaskState

Fields = dict[str, Any]


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


class YesNo(fields.Boolean):
    """A switch in a query."""

    def __init__(self, **options: Any) -> None:
        super().__init__(truthy={"1", "true"}, falsy={"0", "false"}, **options)
        self.error_messages = self.error_messages | {"invalid": "Must be 1 or 0."}


class Label(Text):
    """`key:value`, as a pair."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        key, colon, wanted = super()._deserialize(value, attr, data, **kwargs).partition(":")
        if not (key and colon):
            raise ma.ValidationError("Must be key:value.")
        return key, wanted


class Tag(fields.String):
    """The ETag that an If-Match header names, without its quotes; None where any will do.

    A weak tag never matches here, says RFC 9110: of one, what no ETag of ours is.
    """

    def _deserialize(self, value: str, attr: str | None, data: Any, **kwargs: Any) -> Any:
        tag = value.strip()
        if tag == "*":
            return None
        found = re.fullmatch(r'(W/)?"([\x21\x23-\x7e]*)"', tag)
        if found is None:
            raise errors.Malformed('If-Match must be one ETag in its quotes, as an answer gave it: "3".')
        return "" if found[1] else found[2]


class Version(Tag):
    """The same as the version of a task; 0 where it can match none."""

    def _deserialize(self, value: str, attr: str | None, data: Any, **kwargs: Any) -> Any:
        tag = super()._deserialize(value, attr, data, **kwargs)
        return tag if tag is None else int(tag) if re.fullmatch(r"[1-9][0-9]{0,9}", tag) else 0


class ConditionalSchema(Schema):
    """What a change is meant for. Raises Unconditional where it must be said and is not."""

    @ma.post_load(pass_original=True)
    def _require(self, data: Fields, original: Fields, **_: Any) -> Fields:
        if not original and settings.load().PUNCTUAL_REQUIRE_IF_MATCH:
            raise errors.Unconditional
        return data


class IfMatchSchema(ConditionalSchema):
    """The version that a change is meant for."""

    version = Version(
        data_key="If-Match",
        load_default=None,
        metadata={"description": "Changes nothing, and answers 412, unless this is still the task's ETag."},
    )


class IfMatchRunSchema(ConditionalSchema):
    """The state of a run that a change is meant for."""

    tag = Tag(
        data_key="If-Match",
        load_default=None,
        metadata={"description": "Changes nothing, and answers 412, unless this is still the run's ETag."},
    )


class PageQuerySchema(Schema):
    """Which part of a list."""

    limit = Digits(1, MAX_LIMIT, load_default=50)
    after = Text(0, CURSOR, load_default="", metadata={"description": "The `next` of the page before."})


class TaskFilterSchema(Schema):
    """Which tasks."""

    q = Text(0, 200, metadata={"description": "Part of a name or description."})
    state = Choice(TaskState)
    target = Text(0, 255)
    label = Label(0, 400, metadata={"description": "`key:value`"})


class TasksQuerySchema(PageQuerySchema, TaskFilterSchema):
    """Which tasks, and which part of their list."""


class TaskRunsQuerySchema(PageQuerySchema):
    """Which runs of a task."""

    state = Choice(RunState)
    since = Instant(metadata={"description": "The earliest slot; write + as %2B."})
    until = Instant(metadata={"description": "The latest slot."})


class WaitSchema(Schema):
    """How long to wait."""

    wait = Digits(0, 60, load_default=0, metadata={"description": "Waits up to so many seconds for the run's end."})


class RunsQuerySchema(TaskRunsQuerySchema):
    """Which runs."""

    task_id = fields.UUID(error_messages={"invalid_uuid": "Must be a task's id, a UUID."})


class IncidentsQuerySchema(PageQuerySchema):
    """Which incidents."""

    is_open = YesNo(
        data_key="open", metadata={"description": "1: those that are open; 0: those that are over; else all."}
    )
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


class ImportSchema(BulkSchema):
    """Tasks to be brought in, each with its name."""

    @ma.validates_schema(skip_on_field_errors=True)
    def _check_names(self, data: Fields, **_: Any) -> None:
        problems: dict[int, Any] = {}
        seen: set[str | None] = {None}
        for index, item in enumerate(data["items"]):
            name = item["name"]
            if name in seen:
                says = "Stands twice." if name else "Is required: by it a task is found again."
                problems[index] = {"name": [says]}
            seen.add(name)
        if problems:
            raise ma.ValidationError({"items": problems})


class DryRunSchema(Schema):
    """Whether only to say what would be done."""

    dry_run = YesNo(load_default=False)


class DifferenceSchema(Schema):
    """What stood there, and what is to stand there."""

    before = fields.Raw(allow_none=True)
    after = fields.Raw(allow_none=True)


class ChangedSchema(Schema):
    """A task that differs."""

    name = fields.String()
    fields_ = fields.Dict(
        keys=fields.String(), values=fields.Nested(DifferenceSchema), data_key="fields", attribute="fields"
    )


class ImportedSchema(Schema):
    """What an import did, or would do: the names of tasks that it adds, changes, and leaves as they are."""

    added = fields.List(fields.String())
    changed = fields.List(fields.Nested(ChangedSchema))
    left = fields.List(fields.String())


class ManySchema(TaskFilterSchema):
    """Which tasks: one filter at least, so that none is forgotten by mistake."""

    @ma.validates_schema(skip_on_field_errors=True)
    def _check_filters(self, data: Fields, **_: Any) -> None:
        if not any(data.get(name) for name in ("q", "state", "target", "label")):
            raise ma.ValidationError("Name one of q, state, target and label.", "q")


class PauseManySchema(ManySchema, PauseSchema):
    """Which tasks are paused, and why."""

    empty_body = False


class ResumeManySchema(ManySchema, ResumeSchema):
    """Which tasks are resumed, and from where they go on."""

    empty_body = False


class DoneManySchema(Schema):
    """How many tasks it was done with, and whether there are more."""

    tasks = fields.Integer()
    more = fields.Boolean()


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


class IncidentPageSchema(PageSchema):
    """Incidents, newest first."""

    items = fields.List(fields.Nested(IncidentSchema))


class TargetPageSchema(PageSchema):
    """Targets, by name."""

    items = fields.List(fields.Nested(TargetSchema))


class HealthSchema(Schema):
    """How a process is."""

    status = fields.String()


class ReadinessQuerySchema(Schema):
    """How far to look."""

    store = Choice(("database", "redis", "broker"), metadata={"description": "Only this one is asked for."})
    deep = YesNo(load_default=False, metadata={"description": "Whether the canary of every queue is asked for too."})


class ReadinessSchema(HealthSchema):
    """How the stores are."""

    stores = fields.Dict(keys=fields.String(), values=fields.String())
    canaries = fields.Dict(
        keys=fields.String(),
        values=fields.Float(),
        metadata={"description": "By queue the seconds since the last run of its canary; with `deep`."},
    )


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
