"""A run with its attempts, and an incident, as rows of theirs are shown."""

from datetime import timedelta
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app import models, queries
from app.fields import Choice, Instant
from app.schemas.forms import Fields, RowSchema, Schema
from app.states import Ending, Reason, RunState, Trigger, Trouble


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
