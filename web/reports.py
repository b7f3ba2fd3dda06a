"""What the cluster and the statistics look like to a client."""

from marshmallow import fields, validate

from app import stats, summaries
from app.fields import Choice, Instant
from app.schemas import Schema


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
    canary_age = fields.Float(
        allow_none=True, metadata={"description": "Seconds since its canary's last run; null where it has none."}
    )


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


class StatsQuerySchema(Schema):
    """Of which slots, and of which task."""

    since = Instant(metadata={"description": "The earliest slot, an hour ago where it is not given."})
    task_id = fields.UUID(error_messages={"invalid_uuid": "Must be a task's id, a UUID."})


class LatenessSchema(Schema):
    """How late runs started, in milliseconds."""

    p50_ms = fields.Float(allow_none=True)
    p99_ms = fields.Float(allow_none=True)
    max_ms = fields.Float(allow_none=True)


class StageSchema(Schema):
    """A stage on the way from the slot to the start, over the runs that were late."""

    runs = fields.Integer(metadata={"description": "How many of them it made late: it took longest."})
    p50_ms = fields.Float(allow_none=True)
    max_ms = fields.Float(allow_none=True)


class LateSchema(Schema):
    """The runs that started more than 10 s late, 10,000 of them at most, the latest slots first."""

    runs = fields.Integer()
    stages = fields.Dict(
        keys=fields.String(validate=validate.OneOf(stats.STAGES)),
        values=fields.Nested(StageSchema),
        metadata={
            "description": "`fired`: until a beat recorded it; `published`: until it was sent; "
            "`started`: until a worker claimed it."
        },
    )


class StatsSchema(Schema):
    """How the runs of a time went. Slots count, and those of a backfill in no lateness."""

    since = Instant()
    until = Instant()
    runs = fields.Dict(
        keys=Choice(summaries.STATES),
        values=fields.Integer(),
        metadata={"description": "By state; `waiting`: not ended."},
    )
    in_time = fields.Float(
        allow_none=True, metadata={"description": "The share that started within 10 s; null where none was to start."}
    )
    lateness = fields.Nested(LatenessSchema)
    late = fields.Nested(LateSchema)
