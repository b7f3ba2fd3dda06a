"""Tasks: find them, see what they do, steer them one by one or many at once."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import flask
from sqlalchemy.orm import Session

from app import db, errors, planning, queries, schemas, tasks
from app.fields import Choice
from app.states import Role, TaskState
from web import auth
from web import schemas as web_schemas
from web.ui import charts, pages, reading, showing, week
from web.ui.pages import blp, done, lead, page

LIMIT = 50
MOST = 200
"""Tasks that are steered together at most."""

MARKS = 12
"""Outcomes shown in a row."""

HISTORY = 60
"""Runs on a task's timeline."""

UPCOMING = 10

INCIDENTS = 5
"""Incidents of a task on its page."""

CHANGES = 5
"""Changes of a task that its page shows to who may read the audit log."""


class FilterSchema(web_schemas.TasksQuerySchema):
    """What the page's form asks for."""

    order = Choice(queries.ORDERS)


@blp.get("/tasks")
def all_tasks() -> flask.Response:
    """Lists tasks, with what became of their last runs."""
    asked = pages.asked()
    wanted, problems = reading.filters(FilterSchema(), asked)
    with auth.reading() as session:
        found = queries.tasks(session, **wanted | {"limit": LIMIT})
        outcomes = queries.outcomes(session, [task.id for task in found.items], MARKS)
        targets = [each.target.name for each in queries.targets(session)]
        is_new = not found.items and not queries.has_tasks(session)
    return page(
        "tasks",
        tasks=found,
        outcomes=outcomes,
        asked=asked,
        problems=problems,
        targets=targets,
        states=list(TaskState),
        orders=queries.ORDERS,
        is_new=is_new,
    )


@blp.get("/tasks/<uuid:task_id>")
def show_task(task_id: UUID) -> flask.Response:
    """Shows a task: when it is due, what it calls, how it went."""
    may_audit = auth.may(Role.ADMIN)
    with auth.transaction() as session:
        now = db.now(session)
        task = queries.find_task(session, task_id)
        detail = queries.task_detail(session, task_id) if task.state != TaskState.DELETED else None
        incidents = queries.incidents(session, task_id=task_id, limit=INCIDENTS, after=None).items
        history = queries.runs(session, task_id=task_id, limit=HISTORY, after=None)
        coming = planning.coming(task, now, UPCOMING) if task.state == TaskState.ACTIVE else []
        changes = queries.audit(session, subject_id=str(task_id), limit=CHANGES, after=None).items if may_audit else []
    zone = task.schedule.get("timezone") or "UTC"
    runs = list(reversed(history.items))
    return page(
        "task",
        task=task,
        detail=detail,
        history=runs,
        incidents=incidents,
        latenesses=charts.history(runs, showing.lateness, lambda run: "late" if showing.is_late(run) else "worst"),
        durations=charts.history(runs, showing.took, lambda run: str(run.state)),
        coming=[(slot, showing.exact(slot, zone)) for slot in coming],
        zone=zone,
        changes=changes,
        calendar=week.calendar_address(task=str(task.id), name=task.name),
    )


@blp.post("/tasks/<uuid:task_id>/pause")
def pause_task(task_id: UUID) -> flask.Response:
    """Pauses a task, with a note."""
    note = flask.request.form.get("note", "").strip()
    fields = schemas.load(schemas.PauseSchema(), {"note": note or None})
    with auth.transaction() as session:
        task = tasks.pause(session, db.now(session), task_id, fields["note"])
    return done(f"{task.name} is paused.", _address(task_id))


@blp.post("/tasks/<uuid:task_id>/resume")
def resume_task(task_id: UUID) -> flask.Response:
    """Resumes a task, from now or from where it stopped."""
    fields = schemas.load(schemas.ResumeSchema(), {"from": flask.request.form.get("from") or "now"})
    with auth.transaction() as session:
        task = tasks.resume(session, db.now(session), task_id, fields["since"])
    return done(f"{task.name} goes on.", _address(task_id))


@blp.post("/tasks/<uuid:task_id>/run")
def run_task(task_id: UUID) -> flask.Response:
    """Runs a task now, with its own arguments or with others, and shows the run."""
    typed = {name: flask.request.form.get(name, "") for name in ("args", "kwargs")}
    given = {name: reading.parsed(text, name) for name, text in typed.items() if text.strip()}
    fields = schemas.load(schemas.RunNowSchema(), given)
    with auth.transaction() as session:
        run = tasks.run(session, db.now(session), task_id, fields["args"], fields["kwargs"])
    return lead("It runs now.", flask.url_for("ui.show_run", run_id=run.id))


@blp.post("/tasks/<uuid:task_id>/delete")
def delete_task(task_id: UUID) -> flask.Response:
    """Deletes a task; its runs stay."""
    with auth.transaction() as session:
        tasks.delete(session, db.now(session), task_id)
    return lead("The task is deleted. Its runs are kept.", flask.url_for("ui.all_tasks"))


@blp.post("/tasks/<uuid:task_id>/backfill")
def backfill_task(task_id: UUID) -> flask.Response:
    """Runs a task for past slots that have no run; the first press of the button only counts them."""
    form = flask.request.form
    zone = form.get("zone") or "UTC"
    given = {name: reading.instant(form.get(name, ""), zone, name) for name in ("since", "until")}
    fields = schemas.load(schemas.BackfillSchema(), given)
    with auth.transaction() as session:
        task = queries.task(session, task_id)
        slots = planning.missing(session, db.now(session), task, **fields)
        if form.get("confirmed") != str(len(slots)):
            return page("backfill", task=task, slots=slots, since=form["since"], until=form["until"], zone=zone)
        tasks.backfill(session, db.now(session), task_id, slots)
    return done(f"{showing.count(len(slots), 'run')} will start within seconds.", _address(task_id))


Act = Callable[[Session, datetime, UUID], Any]

ACTIONS: dict[str, tuple[Role, str, Act]] = {
    "pause": (Role.OPERATOR, "paused", lambda session, now, task_id: tasks.pause(session, now, task_id, None)),
    "resume": (Role.OPERATOR, "resumed", lambda session, now, task_id: tasks.resume(session, now, task_id, "now")),
    "delete": (Role.EDITOR, "deleted", tasks.delete),
}
"""What can be done with a selection: the role that it takes, what is said, and how."""


@blp.post("/tasks/selection")
def steer_tasks() -> flask.Response:
    """Does one thing with each selected task; those that it does not fit are said, their neighbours are done."""
    role, said, act = ACTIONS.get(flask.request.form.get("action", ""), (None, "", None))
    if role is None or act is None:
        raise errors.Malformed("Choose what is to be done with the selection.")
    auth.require(role)
    chosen = [UUID(each) for each in flask.request.form.getlist("task")[:MOST] if _is_id(each)]
    kept: list[str] = []
    for task_id in chosen:
        try:
            with auth.transaction() as session:
                act(session, db.now(session), task_id)
        except (errors.Conflict, errors.NotFound, errors.Unavailable) as exc:
            kept.append(exc.message)
    if kept:
        flask.flash(f"{showing.count(len(kept), 'task')} left as it was: {kept[0]}")
    return done(f"{showing.count(len(chosen) - len(kept), 'task')} {said}.", flask.url_for("ui.all_tasks"))


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _address(task_id: UUID) -> str:
    return flask.url_for("ui.show_task", task_id=task_id)
