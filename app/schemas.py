"""The words of the contract: what a task, a run and a target look like to a client. REST and Celery calls share them.

Loading a task gives the `fields` that the use cases of `app.tasks` take; dumping takes rows.
"""

import json
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urlsplit

import marshmallow as ma
from marshmallow import fields, validate

from app import errors, models, queries, settings, signatures
from app.fields import Choice, Flag, Instant, JsonArray, JsonObject, Seconds, Text, Whole
from app.states import Catchup, Ending, Overlap, Reason, RunState, TaskState, Trigger, Trouble

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

Fields = dict[str, Any]


class Schema(ma.Schema):
    """Refuses what it does not know."""

    class Meta:
        unknown = ma.RAISE

    error_messages = {"type": "Must be an object.", "unknown": "Unknown field."}  # noqa: RUF012


class RowSchema(Schema):
    """Dumps dictionaries that have all of its fields. To look for each as marshmallow does takes most of the time of a
    page of tasks."""

    def _serialize(self, obj: Any, *, many: bool = False) -> Any:
        if many:
            return [self._serialize(each) for each in obj]
        return {
            field.data_key or name: field._serialize(obj[name], name, obj)  # noqa: SLF001 - as its own `serialize` does
            for name, field in self.dump_fields.items()
        }


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


class FailureSchema(Schema):
    """What went wrong in a target, or with its worker."""

    type = fields.String()
    message = fields.String()
    traceback = fields.String(allow_none=True)


class RunSchema(RowSchema):
    """A run."""

    id = fields.UUID()
    task_id = fields.UUID()
    task_name = fields.String()
    target = fields.String()
    queue = fields.String()
    trigger = Choice(Trigger)
    scheduled_for = Instant()
    missed = fields.Integer()
    state = Choice(RunState)
    reason = Choice(Reason, allow_none=True)
    cancelling = fields.Boolean(
        metadata={"description": "Whether it is to be cancelled and its worker has yet to end it."}
    )
    attempt = fields.Integer()
    worker = fields.String(allow_none=True)
    fired_at = Instant()
    published_at = Instant(allow_none=True)
    started_at = Instant(allow_none=True)
    finished_at = Instant(allow_none=True)
    retry_at = Instant(allow_none=True)
    lateness_ms = fields.Float(allow_none=True)
    result = fields.Raw(allow_none=True)
    error = fields.Nested(FailureSchema, allow_none=True)

    @ma.pre_dump
    def _derive(self, run: models.Run, **_: Any) -> Fields:
        return self._row(run)

    def _row(self, run: models.Run) -> Fields:
        columns = self.fields.keys() - {"lateness_ms", "attempts", "cancelling"}
        cancelling = run.cancel_reason is not None and run.finished_at is None
        return {name: getattr(run, name) for name in columns} | {
            "lateness_ms": lateness(run),
            "cancelling": cancelling,
        }


class IncidentSchema(RowSchema):
    """That a task is not well in one way, from when until when."""

    id = fields.UUID()
    task_id = fields.UUID()
    task_name = fields.String()
    kind = Choice(Trouble)
    run_id = fields.UUID(allow_none=True, metadata={"description": "The run that opened it."})
    scheduled_for = Instant(allow_none=True, metadata={"description": "Its slot."})
    note = fields.String(allow_none=True)
    count = fields.Integer(metadata={"description": "How many runs or slots it is about by now."})
    reopened = fields.Integer(metadata={"description": "How often it came back soon after it was over."})
    opened_at = Instant()
    last_at = Instant(metadata={"description": "When the last of these came to it."})
    closed_at = Instant(allow_none=True)
    ending = Choice(
        Ending,
        allow_none=True,
        metadata={"description": "`well`: it is well again; `over`: no slot is left that could show it."},
    )

    @ma.pre_dump
    def _flatten(self, incident: models.Incident, **_: Any) -> Fields:
        return {name: getattr(incident, name) for name in self.fields}


class AttemptSchema(Schema):
    """One try of a run."""

    attempt = fields.Integer()
    worker = fields.String(allow_none=True)
    started_at = Instant(allow_none=True)
    finished_at = Instant(allow_none=True)
    outcome = fields.String()
    error = fields.Nested(FailureSchema, allow_none=True)


class RunDetailSchema(RunSchema):
    """A run with its attempts."""

    attempts = fields.List(fields.Nested(AttemptSchema))

    @ma.pre_dump
    def _derive(self, detail: queries.RunDetail, **_: Any) -> Fields:
        return self._row(detail.run) | {"attempts": [*detail.attempts, *current(detail)]}


class ParameterSchema(Schema):
    """A parameter of a target's function."""

    name = fields.String()
    kind = fields.String(metadata={"enum": [*signatures.KINDS]})
    default = fields.String(allow_none=True, metadata={"description": "As Python; null: it must be given."})
    annotation = fields.String(allow_none=True, metadata={"description": "As Python."})


class TargetSchema(Schema):
    """What a task can call."""

    name = fields.String()
    queue = fields.String()
    signature = fields.String()
    parameters = fields.List(
        fields.Nested(ParameterSchema), allow_none=True, metadata={"description": "null: nobody has told."}
    )
    documentation = fields.String()
    last_seen_at = Instant()
    available = fields.Boolean(metadata={"description": "Whether a live worker offers it right now."})

    @ma.pre_dump
    def _flatten(self, detail: queries.TargetDetail, **_: Any) -> Fields:
        columns = self.fields.keys() - {"available"}
        return {name: getattr(detail.target, name) for name in columns} | {"available": detail.available}


def load(schema: ma.Schema, data: Fields) -> Fields:
    """What a client gave, checked. Raises Invalid, field by field."""
    try:
        return dict(schema.load(data))
    except ma.ValidationError as exc:
        by_field = cast("dict[str, Any]", exc.messages)
        raise errors.Invalid(errors={field: fold(inner) for field, inner in by_field.items()}) from exc


def fold(messages: Any) -> Any:
    """Messages on an object as a whole stand in marshmallow's `_schema`; they belong to the field that holds it."""
    if not isinstance(messages, dict):
        return messages
    if messages.keys() == {"_schema"}:
        return messages["_schema"]
    return {field: fold(inner) for field, inner in messages.items()}


def lateness(run: models.Run) -> float | None:
    """Milliseconds from the slot to the start of the first attempt; None before that, and for a backfill, whose slot
    was over when it was asked for."""
    if run.started_at is None or run.trigger == Trigger.BACKFILL:
        return None
    return round((run.started_at - run.scheduled_for) / timedelta(milliseconds=1), 1)


def current(detail: queries.RunDetail) -> list[Fields]:
    """The attempt that stands in the run itself, where it has started; it may be a past one that waits for the next.

    When another app's attempt started is not known; that it did is known once the app has answered.
    """
    run = detail.run
    began = run.attempt_started_at is not None or run.state in {RunState.SUCCEEDED, RunState.FAILED}
    if not began or run.attempt in {past.attempt for past in detail.attempts}:
        return []
    return [
        {
            "attempt": run.attempt,
            "worker": run.worker,
            "started_at": run.attempt_started_at,
            "finished_at": run.finished_at,
            "outcome": outcome(run),
            "error": run.error,
        }
    ]


def outcome(run: models.Run) -> str:
    """The same words that past attempts are kept with: a failure is named by its reason."""
    if run.finished_at is None:
        return str(RunState.RUNNING)
    failed_by = run.reason if run.state == RunState.FAILED and run.reason != Reason.ERROR else None
    return str(failed_by or run.state)
