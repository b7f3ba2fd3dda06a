"""What keys and the audit log look like to a client."""

from datetime import datetime
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from app import audit, clock
from app.api_keys import Made
from app.fields import Choice, Instant, Text, Whole
from app.models import AuditEntry
from app.schemas import QUEUE, QUEUE_SAYS, VISIBLE, VISIBLE_SAYS, Schema, TaskSchema
from app.states import Action, Role, Subject, Via
from web.schemas import PageQuerySchema, PageSchema

Fields = dict[str, Any]

DEFAULT_TASKS = 100_000
MAX_TASKS = 2**31 - 1
"""How many tasks may be of a key's making."""


class NewKeySchema(Schema):
    """A key to be made."""

    name = Text(1, 200, required=True, pattern=VISIBLE, error_messages={"pattern": VISIBLE_SAYS})
    role = Choice(Role, required=True)
    queues = fields.List(
        Text(pattern=QUEUE, error_messages={"pattern": QUEUE_SAYS}),
        allow_none=True,
        load_default=None,
        validate=validate.Length(min=1, max=32),
        error_messages={"invalid": "Must be an array."},
        metadata={"description": "It sees only tasks of these queues; null: of all."},
    )
    labels = TaskSchema._declared_fields["labels"]  # noqa: SLF001 - marshmallow's own table of fields
    max_tasks = Whole(
        1,
        MAX_TASKS,
        allow_none=True,
        load_default=DEFAULT_TASKS,
        metadata={"description": "How many tasks may be of its making; null: as many as it likes."},
    )
    expires_at = Instant(allow_none=True, load_default=None)

    @ma.validates_schema(skip_on_field_errors=True)
    def _check_bounds(self, data: Fields, **_: Any) -> None:
        """Who makes keys and reads the audit log sees everything."""
        if data["role"] == Role.ADMIN and (data["queues"] is not None or data["labels"]):
            raise ma.ValidationError("An administrator's key cannot be confined.", "role")

    @ma.validates("expires_at")
    def _check_end(self, value: datetime | None, **_: Any) -> None:
        if value is not None and value <= clock.now():
            raise ma.ValidationError("Must be in the future.")


class KeySchema(NewKeySchema):
    """A key, without what opens."""

    id = fields.String(dump_only=True)
    tasks = fields.Integer(dump_only=True, metadata={"description": "How many tasks are of its making."})
    created_at = Instant(dump_only=True)
    created_by = fields.String(dump_only=True)
    revoked_at = Instant(dump_only=True, allow_none=True)
    last_used_at = Instant(dump_only=True, allow_none=True, metadata={"description": "Within a minute."})


class MadeKeySchema(KeySchema):
    """A new key."""

    key = fields.String(dump_only=True, metadata={"description": "What its holder sends. It is shown this once."})

    @ma.pre_dump
    def _add(self, made: Made, **_: Any) -> Fields:
        return {name: getattr(made.key, name) for name in self.fields if name != "key"} | {"key": made.text}


class KeyPageSchema(PageSchema):
    """Keys, newest first; those that were revoked too."""

    items = fields.List(fields.Nested(KeySchema))


class AuditQuerySchema(PageQuerySchema):
    """Which changes."""

    actor = Text(0, 200, metadata={"description": "A key's id, `admin` or `celery`."})
    action = Choice(Action)
    subject = Choice(Subject)
    subject_id = Text(0, 64, metadata={"description": "The id of a task, a run or a key."})
    since = Instant()
    until = Instant()


class AuditEntrySchema(Schema):
    """A change that somebody made."""

    id = fields.Integer()
    at = fields.String(metadata={"format": "date-time"})
    actor = fields.String(metadata={"description": "A key's id, `admin` or `celery`."})
    actor_name = fields.String()
    via = Choice(Via)
    address = fields.String(allow_none=True)
    action = Choice(Action)
    subject = Choice(Subject)
    subject_id = fields.String()
    subject_name = fields.String()
    before = fields.Dict(allow_none=True, metadata={"description": "What differed before, field by field."})
    after = fields.Dict(allow_none=True)
    position = fields.Integer(
        allow_none=True, metadata={"description": "Its place in the chain, from 1; null for about a second."}
    )
    previous = fields.String(allow_none=True, metadata={"description": "The hash of the entry before it."})
    hash = fields.String(
        allow_none=True,
        metadata={"description": "SHA-256 of this entry without `hash`, as JSON with sorted keys and no spaces."},
    )

    @ma.pre_dump
    def _as_hashed(self, entry: AuditEntry, **_: Any) -> Fields:
        return audit.shown(entry)


class AuditPageSchema(PageSchema):
    """Changes, newest first."""

    items = fields.List(fields.Nested(AuditEntrySchema))
