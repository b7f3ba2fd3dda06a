"""How a schema of ours loads and dumps, whatever it is of."""

from typing import Any, cast

import marshmallow as ma

from app import errors

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
