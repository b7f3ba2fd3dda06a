"""What a task calls: its target and arguments, held against what the workers offer."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import errors, settings, signatures
from app.models import Target, Task

Fields = Mapping[str, Any]

DEFAULTS: Fields = {"target": None, "args": [], "kwargs": {}}
"""The fields that say what is called, and what they are where nothing is said."""


def meant(fields: Fields, task: Task | None = None) -> Fields:
    """What is to be called: what is given, and of the rest what the task has."""
    rest = {name: getattr(task, name) for name in DEFAULTS} if task else DEFAULTS
    return {name: fields.get(name, rest[name]) for name in DEFAULTS}


def check(session: Session, calls: Sequence[Fields], shape: Any) -> None:
    """Raises Invalid where a target is one that no worker has ever offered, or arguments do not fit it."""
    wanted = {call["target"] for call in calls}
    rows = session.execute(select(Target.name, Target.parameters).where(Target.name.in_(wanted)))
    known: dict[str, Any] = dict(rows.all())
    problems = {index: found for index, call in enumerate(calls) if (found := _misfits(known, **call))}
    if problems:
        raise errors.Invalid(errors=shape(problems))


def _misfits(known: Mapping[str, Any], target: str, args: Sequence[Any], kwargs: Fields) -> Mapping[str, Any]:
    if settings.load().external_queue(target):
        return {}  # what another app offers, and what that takes, is known there alone
    if target not in known:
        return {"target": [f"No worker offers {target!r}. GET /targets lists what can be called."]}
    return {} if known[target] is None else signatures.misfits(target, known[target], args, kwargs)
