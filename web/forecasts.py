"""What the forecast looks like to a client: its schemas, and the answers that they dump."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from marshmallow import fields

from app.fields import Instant, Text
from app.forecast import DAY
from app.forecast.effects import Effect, Figures
from app.forecast.mends import Cause, Mend, Trouble
from app.forecast.model import GRACE
from app.forecast.outlook import Outlook, Queue
from app.schemas import Schema, TaskSchema
from web.schemas import Digits

SECONDS_OR_NULL = "seconds from a slot to the start of its run, the longest; null where no worker serves the queue"


class ForecastQuerySchema(Schema):
    """How far ahead, and of which queue."""

    minutes = Digits(1, DAY, load_default=DAY)
    queue = Text(1, 255, metadata={"description": "Of one queue alone."})


class QueueOutlookSchema(Schema):
    """What is to come on a queue."""

    name = fields.String()
    external = fields.Boolean(metadata={"description": "Another app's: its runs count, its work is unknown."})
    processes = fields.Float(metadata={"description": "Of all workers that serve it, at their upper bounds."})
    runs = fields.Float()
    work = fields.Float(metadata={"description": "Seconds of a process."})
    share = fields.Float(allow_none=True, metadata={"description": "Of its processes that the fullest minute takes."})
    longest = fields.Float(allow_none=True, metadata={"description": f"How late: {SECONDS_OR_NULL}."})
    late_minutes = fields.Integer()


class ByMinuteSchema(Schema):
    """A figure for each minute, from `start` on."""

    due = fields.List(fields.Float(), metadata={"description": "Runs that fall due."})
    work = fields.List(fields.Float(), metadata={"description": "The seconds of a process that they take."})
    capacity = fields.Float(metadata={"description": "The seconds of a process that there are in each minute."})
    longest = fields.List(fields.Float(allow_none=True), metadata={"description": f"How late: {SECONDS_OR_NULL}."})
    late = fields.List(fields.Float(), metadata={"description": "Runs that would start more than 10 s late."})


class CauseSchema(Schema):
    """Tasks of one schedule that bring much to a late time."""

    schedule = fields.String(metadata={"description": "In words."})
    example = fields.String(allow_none=True, metadata={"description": "The name of one of the tasks."})
    tasks = fields.Integer()
    runs = fields.Float()
    work = fields.Float(metadata={"description": "Seconds of a process."})


class MendsSchema(Schema):
    """What would do, each by itself; null where it would not, or was not found in time."""

    processes = fields.Integer(allow_none=True, metadata={"description": "So many serving the queue."})
    jitter = fields.Integer(
        allow_none=True, metadata={"description": "So many seconds for the tasks of the first cause."}
    )
    minutes = fields.Integer(
        allow_none=True,
        metadata={"description": "The tasks of the first cause so much later, or earlier where negative."},
    )


class LateTimeSchema(Schema):
    """Minutes one after the other in which runs of a queue would start late."""

    queue = fields.String()
    since = Instant()
    until = Instant()
    longest = fields.Float(allow_none=True, metadata={"description": f"How late: {SECONDS_OR_NULL}."})
    over = fields.Float(allow_none=True, metadata={"description": "By how much that is more than the 10 s promised."})
    runs = fields.Float(metadata={"description": "How many would be late."})
    causes = fields.List(fields.Nested(CauseSchema), metadata={"description": "The heaviest first, three at most."})
    mends = fields.Nested(MendsSchema, allow_none=True)


class OutlookSchema(Schema):
    """What is to come."""

    start = Instant()
    minutes = fields.Integer()
    runs = fields.Float()
    unknown_ = fields.Float(
        data_key="unknown",
        attribute="unknown",
        allow_none=True,
        metadata={"description": "The share of runs of which nobody knows how long they take: they count as nothing."},
    )
    missing = fields.Integer(
        metadata={"description": "Tasks that are left out, as their slots take too long to compute."}
    )
    confined = fields.Boolean(metadata={"description": "Only what this key sees is counted, as if it were all."})
    queues = fields.List(fields.Nested(QueueOutlookSchema))
    by_minute = fields.Nested(ByMinuteSchema)
    late = fields.List(fields.Nested(LateTimeSchema), metadata={"description": "The 50 worst times, in their order."})
    more = fields.Integer(metadata={"description": "Late times that are not listed."})


class FiguresSchema(Schema):
    """An outlook in three numbers."""

    late_minutes = fields.Integer(metadata={"description": "In how many minutes a run of any queue would be late."})
    longest = fields.Float(allow_none=True, metadata={"description": f"How late: {SECONDS_OR_NULL}."})
    share = fields.Float(
        allow_none=True, metadata={"description": "Of the queue's processes that the fullest minute takes."}
    )


class EffectSchema(Schema):
    """What a task would do to the next day."""

    start = Instant()
    minutes = fields.Integer()
    runs = fields.Float(metadata={"description": "Of the task itself."})
    work = fields.Float(allow_none=True, metadata={"description": "Seconds of a process; null where nobody knows."})
    before = fields.Nested(FiguresSchema)
    after = fields.Nested(FiguresSchema)
    added = fields.List(Instant(), metadata={"description": "The first 60 minutes that would be late and are not now."})


class RehearsalSchema(Schema):
    """A task as it would be, and what it would do. Nothing was changed."""

    task = fields.Nested(TaskSchema)
    forecast = fields.Nested(EffectSchema)


EFFECT = EffectSchema()


def dumped(
    found: Outlook,
    told: Sequence[Trouble],
    examples: Mapping[Any, str],
    queue: str | None,
    *,
    confined: bool,
    more: int,
) -> dict[str, Any]:
    """The answer to `GET /forecast`."""
    shown = [each for each in found.queues.values() if queue in (None, each.name)]
    ours = [each for each in shown if not each.is_theirs]
    processes = found.processes if queue is None else sum(each.processes for each in ours)
    return {
        "start": found.start,
        "minutes": found.minutes,
        "runs": _round(sum(sum(each.due) for each in shown)),
        "unknown": _round(found.unknown, 4),
        "missing": found.demand.missing,
        "confined": confined,
        "queues": [_queue(each) for each in shown],
        "by_minute": {
            "due": _added(found.minutes, [each.due for each in shown]),
            "work": _added(found.minutes, [each.work for each in ours]),
            "capacity": _round(processes * 60),
            "longest": _most(found.minutes, [each.waits.longest for each in shown]),
            "late": _added(found.minutes, [each.waits.late for each in shown]),
        },
        "late": [_late(found, each, examples) for each in told],
        "more": more,
    }


def effect(found: Effect) -> dict[str, Any]:
    """What `EffectSchema` dumps."""
    return vars(found) | {
        "runs": _round(found.runs),
        "work": _round(found.work),
        "before": _figures(found.before),
        "after": _figures(found.after),
    }


def _figures(found: Figures) -> dict[str, Any]:
    return {"late_minutes": found.late_minutes, "longest": _round(found.longest), "share": _round(found.share, 4)}


def _queue(found: Queue) -> dict[str, Any]:
    return {
        "name": found.name,
        "external": found.is_theirs,
        "processes": found.processes,
        "runs": _round(sum(found.due)),
        "work": _round(sum(found.work)),
        "share": _round(max(found.shares, default=0.0), 4),
        "longest": _round(max(found.waits.longest, default=0.0)),
        "late_minutes": len(found.waits.late_minutes),
    }


def _late(found: Outlook, trouble: Trouble, examples: Mapping[Any, str]) -> dict[str, Any]:
    spell = trouble.spell
    return {
        "queue": spell.queue,
        "since": found.at(spell.start),
        "until": found.at(spell.end),
        "longest": _round(spell.longest),
        "over": _round(spell.longest - GRACE),
        "runs": _round(spell.late),
        "causes": [_cause(each, examples) for each in trouble.causes],
        "mends": trouble.mend and _mend(trouble.mend),
    }


def _cause(found: Cause, examples: Mapping[Any, str]) -> dict[str, Any]:
    return {
        "schedule": found.source.words,
        "example": examples.get((found.source, found.first)),
        "tasks": found.tasks,
        "runs": _round(found.runs),
        "work": _round(found.work),
    }


def _mend(found: Mend) -> dict[str, Any]:
    return {"processes": found.processes, "jitter": found.jitter, "minutes": found.minutes}


def _added(count: int, columns: Sequence[Sequence[float]]) -> list[float | None]:
    return [_round(sum(values)) for values in zip(*columns, strict=True)] if columns else [0.0] * count


def _most(count: int, columns: Sequence[Sequence[float]]) -> list[float | None]:
    return [_round(max(values)) for values in zip(*columns, strict=True)] if columns else [0.0] * count


def _round(value: float | None, places: int = 1) -> float | None:
    """JSON knows nothing infinite."""
    return None if value is None or math.isinf(value) else round(value, places)
