"""Registering and changing a task: the form, and what it would mean while one types."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import flask
from sqlalchemy.orm import Session

from app import db, errors, forecast, planning, queries, rehearsals, schemas, signatures, tasks
from app.fields import is_same
from app.forecast.effects import Effect
from app.models import Target, Task
from app.schedules import zones
from app.signatures import Parameter
from web import auth
from web.ui import forms, reading, showing
from web.ui.pages import PART, blp, flat, lead, page

VERSION = re.compile(r"[0-9]{1,9}")
LOAD = "load"
"""The part of the page that says what the task would do to the next day: a second's work."""

SLOTS = 5
COMPARED = 25
"""Slots of the old and the new schedule that are held against each other."""

STALE = "Somebody changed this task meanwhile. What you see is yours: saving it now replaces theirs."

EXAMPLES = {
    "cron": [
        ("*/5 * * * *", "every 5 minutes"),
        ("0 9 * * MON-FRI", "weekdays at 9"),
        ("0 0 L * *", "month's end"),
    ],
    "rrule": [("FREQ=MONTHLY;BYDAY=-1FR", "last Friday"), ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO", "every other Monday")],
}


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the form as it stands would mean."""

    words: str
    slots: list[tuple[datetime, str]]
    """Each with what the clocks of the form's zone show."""
    warnings: list[str]
    added: list[datetime]
    removed: list[datetime]
    problems: list[str]


@blp.get("/tasks/new")
def new_task() -> flask.Response:
    """Asks for a task; `like` names one to begin from."""
    like = flask.request.args.get("like", "").replace("\0", "")
    with auth.transaction() as session:
        if like:
            model = queries.task(session, queries.task_id(session, like))
            form = forms.filled(model, _named(session, model.target))
            form.name.data = f"{model.name}-copy"
            form.task = None  # it is not that one which is changed
        else:
            form = forms.TaskForm(data={"target": flask.request.args.get("target", "")})
        return _show(session, form)


@blp.post("/tasks/new")
def create_task() -> flask.Response:
    """Registers a task."""
    return _save(None)


@blp.get("/tasks/<uuid:task_id>/edit")
def edit_task(task_id: UUID) -> flask.Response:
    """Asks for the changes of a task."""
    with auth.transaction() as session:
        task = queries.task(session, task_id)
        return _show(session, forms.filled(task, _named(session, task.target)))


@blp.post("/tasks/<uuid:task_id>/edit")
def change_task(task_id: UUID) -> flask.Response:
    """Changes a task."""
    return _save(task_id)


def _save(task_id: UUID | None) -> flask.Response:
    """Saves the form, or shows it again: with what is wrong, or with what it would mean where only that was asked."""
    form = forms.TaskForm()
    with auth.transaction() as session:
        form.task = queries.task(session, task_id) if task_id else None
        form.parameters = _named(session, form.text("target"))
    if "save" in flask.request.form and PART not in flask.request.headers:
        try:
            task = _write(form)
        except (errors.Invalid, errors.Conflict) as exc:
            form.blame(exc.errors or {"name": [exc.message]})
        except errors.Stale:
            form.other_problems.append(STALE)
        else:
            said = f"{task.name} is saved." if task_id else f"{task.name} is registered."
            return lead(said, flask.url_for("ui.show_task", task_id=task.id))
    asks = flask.request.headers.get(PART) == LOAD or (
        "look" in flask.request.form and PART not in flask.request.headers
    )
    effect = _effect(form) if asks else None
    with auth.transaction() as session:
        if STALE in form.other_problems and task_id:
            form.version.data = str(queries.task(session, task_id).version)
        return _show(session, form, effect, status=422 if form.has_problems else 200)


def _write(form: forms.TaskForm) -> Task:
    given = form.given()
    fields = schemas.load(schemas.TaskSchema(), given)
    if form.task is None:
        with auth.transaction() as session:
            return tasks.create(session, db.now(session), fields)
    changed = _changes(form.task, given, form.parameters, fields)
    if not changed:
        return form.task
    version = form.text("version")
    meant = int(version) if VERSION.fullmatch(version) else None
    with auth.transaction() as session:
        return tasks.change(session, db.now(session), form.task.id, changed, version=meant)


def _changes(
    task: Task, given: Mapping[str, Any], parameters: Sequence[Parameter], fields: dict[str, Any]
) -> dict[str, Any]:
    """What a person has changed: what was sent otherwise than the form had shown it.

    It is held against the form and not against the task, of which a form shows some things less exactly. And a
    schedule that is only named again would count anew from now.
    """
    try:
        shown = forms.filled(task, parameters).given()
    except errors.Invalid:  # its schedule cannot be read any more: whatever is sent mends it
        return fields
    return {name: value for name, value in fields.items() if not is_same(given[name], shown[name])}


def _effect(form: forms.TaskForm) -> Effect | None:
    """What saving the form would do to the next day; None where it cannot be saved, which is said elsewhere."""

    def read() -> forecast.Known:
        with auth.transaction() as session:
            return forecast.read(session, db.now(session))

    before = forecast.recent(auth.actor(), read)
    try:
        given = form.given()
        fields = schemas.load(schemas.TaskSchema(), given)
        with auth.transaction() as session:
            if form.task is None:
                found = rehearsals.create(session, db.now(session), fields, before.start)
            else:
                changed = _changes(form.task, given, form.parameters, fields)
                found = rehearsals.change(session, db.now(session), form.task.id, changed, before.start)
    except (errors.Invalid, errors.Conflict):
        return None
    return found.effect(before)


def _show(session: Session, form: forms.TaskForm, effect: Effect | None = None, status: int = 200) -> flask.Response:
    offered = queries.targets(session)
    target = _target(offered, form.text("target"))
    form.parameters = _fields(target)
    return page(
        "task_form",
        status=status,
        form=form,
        task=form.task,
        targets=offered,
        target=target,
        parameters=form.parameters,
        outlook=_outlook(form, db.now(session)),
        effect=effect,
        zones=sorted(zones.names()),
        examples=EXAMPLES,
        prefix=forms.ARGUMENT,
    )


def _outlook(form: forms.TaskForm, now: datetime) -> Outlook:
    """The words, the next slots and the warnings of the schedule that the form holds right now."""
    zone = form.text("timezone") or "UTC"
    try:
        texts = {name: reading.instant(form.text(name), zone, name) for name in ("starts_at", "ends_at")}
        bounds = {name: datetime.fromisoformat(text) if text else None for name, text in texts.items()}
        plan = planning.preview(now, form.schedule(), COMPARED, **bounds)
    except errors.Invalid as exc:
        said = [sentence for _, sentence in flat(exc.errors)]
        return Outlook(words="", slots=[], warnings=[], added=[], removed=[], problems=said)
    added, removed = _difference(form.task, plan.slots, now)
    shown = [(slot, showing.exact(slot, zone)) for slot in plan.slots[:SLOTS]]
    return Outlook(
        words=plan.description, slots=shown, warnings=plan.warnings, added=added, removed=removed, problems=[]
    )


def _difference(task: Task | None, new: list[datetime], now: datetime) -> tuple[list[datetime], list[datetime]]:
    """Which of the next slots an edit adds, and which it takes away, as far as both are known; jitter aside."""
    if task is None or task.next_run_at is None:
        return [], []
    try:
        old = planning.preview(now, task.schedule, COMPARED, starts_at=task.starts_at, ends_at=task.ends_at).slots
    except errors.Invalid:  # it has no slot left, or cannot be read any more
        return new[:SLOTS], []
    end = min(max(old), max(new)) if len(old) == len(new) == COMPARED else max(old + new)
    added = sorted(slot for slot in set(new) - set(old) if slot <= end)
    removed = sorted(slot for slot in set(old) - set(new) if slot <= end)
    return added[:SLOTS], removed[:SLOTS]


def _named(session: Session, target: str) -> list[Parameter]:
    """The parameters of a target that have a field each."""
    return _fields(_target(queries.targets(session), target))


def _target(offered: Sequence[queries.TargetDetail], name: str) -> Target | None:
    return next((each.target for each in offered if each.target.name == name), None)


def _fields(target: Target | None) -> list[Parameter]:
    known = target.parameters if target else None
    return [each for each in known or [] if each["kind"] in signatures.NAMED]
