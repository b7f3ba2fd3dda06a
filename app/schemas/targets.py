"""What a task can call."""

from typing import Any

import marshmallow as ma
from marshmallow import fields

from app import queries, signatures
from app.fields import Instant
from app.schemas.forms import Fields, Schema


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
