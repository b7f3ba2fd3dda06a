"""Tasks: register, read, change, pause, resume, run, delete; one by one, or those that a filter names."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

import flask

from app import bulk, db, forecast, models, planning, queries, rehearsals, replica, schemas, tasks
from app.actors import Actor
from app.states import TaskState
from web import auth, forecasts
from web import schemas as web_schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("tasks", "What is to be run, and when.")


@blp.serves("POST", "/tasks")
@blp.takes(web_schemas.DryRunSchema, "query")
@blp.takes(schemas.TaskSchema)
@blp.gives(201, schemas.TaskSchema, headers=("Location", "ETag"))
@blp.or_gives(200, forecasts.RehearsalSchema)
@blp.refuses(409)
def create(wanted: Fields, fields: Fields) -> flask.Response | tuple[models.Task, dict[str, str]]:
    """Registers a task, or only says what it would do to the forecast."""
    if wanted["dry_run"]:
        return _rehearsed(partial(rehearsals.create, fields=fields))
    with auth.transaction() as session:
        task = tasks.create(session, db.now(session), fields)
    return task, {"Location": flask.url_for("tasks.show", task_id=task.id), **tag(task)}


def _rehearsed(rehearse: Callable[..., rehearsals.Rehearsal]) -> flask.Response:
    """What a task would be, and what it would do. The outlook is made after the transaction: it may take its time."""
    with auth.transaction() as session:
        now = db.now(session)
        known = forecast.read(session, now)
        found = rehearse(session, now, start=known.tasks.start)
    effect = found.effect(forecast.look(known))
    answer = {"task": found.task, "forecast": forecasts.EFFECT.dump(forecasts.effect(effect))}
    return flask.jsonify(answer)


@blp.serves("POST", "/tasks/bulk")
@blp.takes(web_schemas.BulkSchema)
@blp.gives(201, web_schemas.TasksSchema)
@blp.refuses(409)
def create_many(fields: Fields) -> Fields:
    """Registers up to 1,000 tasks, all or none."""
    with auth.transaction() as session:
        created = tasks.create_many(session, db.now(session), fields["items"])
    return {"items": created}


@blp.serves("POST", "/tasks/import")
@blp.takes(web_schemas.DryRunSchema, "query")
@blp.takes(web_schemas.ImportSchema)
@blp.gives(200, web_schemas.ImportedSchema)
@blp.refuses(403, 409)
def import_many(wanted: Fields, fields: Fields) -> bulk.Imported:
    """Adds tasks that are not there, by their names, and changes those that differ, all or none."""
    with auth.transaction() as session:
        return bulk.bring(session, db.now(session), fields["items"], dry_run=wanted["dry_run"])


@blp.serves("GET", "/tasks/export")
@blp.takes(web_schemas.TaskFilterSchema, "query")
@blp.streams("application/x-ndjson")
def export(wanted: Fields) -> flask.Response:
    """Gives tasks as JSON lines, each as it may be registered again."""
    read = partial(_page, auth.actor(), wanted)
    # one that has no slot left could not be registered again
    lines = _lines(read(after=None), read, completed_too="state" in wanted)
    return flask.Response(lines, content_type="application/x-ndjson")


def _page(by: Actor | None, wanted: Fields, *, after: str | None) -> queries.Page[models.Task]:
    with replica.reading(by=by) as session:
        return queries.tasks(session, **wanted, order="name", limit=bulk.MAX_BULK, after=after)


def _lines(
    page: queries.Page[models.Task], read: Callable[..., queries.Page[models.Task]], *, completed_too: bool
) -> Iterator[str]:
    """Page by page, each in a transaction of its own: whoever reads them may be slow."""
    while True:
        shown = [task for task in page.items if completed_too or task.state != TaskState.COMPLETED]
        yield "".join(f"{json.dumps(bulk.definition(task), ensure_ascii=False)}\n" for task in shown)
        if page.next is None:
            return
        page = read(after=page.next)


@blp.serves("POST", "/tasks/bulk/pause")
@blp.takes(web_schemas.PauseManySchema)
@blp.gives(200, web_schemas.DoneManySchema)
def pause_many(fields: Fields) -> bulk.Done:
    """Pauses up to 1,000 active tasks of those that the filters name, and says whether there are more."""
    note = fields.pop("note")
    with auth.transaction() as session:
        return bulk.pause(session, db.now(session), fields, note)


@blp.serves("POST", "/tasks/bulk/resume")
@blp.takes(web_schemas.ResumeManySchema)
@blp.gives(200, web_schemas.DoneManySchema)
def resume_many(fields: Fields) -> bulk.Done:
    """Resumes up to 1,000 paused tasks of those that the filters name, and says whether there are more."""
    since = fields.pop("since")
    with auth.transaction() as session:
        return bulk.resume(session, db.now(session), fields, since)


@blp.serves("POST", "/tasks/bulk/delete")
@blp.takes(web_schemas.ManySchema)
@blp.gives(200, web_schemas.DoneManySchema)
def delete_many(fields: Fields) -> bulk.Done:
    """Deletes up to 1,000 tasks of those that the filters name, and says whether there are more."""
    with auth.transaction() as session:
        return bulk.delete(session, db.now(session), fields)


@blp.serves("GET", "/tasks")
@blp.takes(web_schemas.TasksQuerySchema, "query")
@blp.gives(200, web_schemas.TaskPageSchema)
def index(wanted: Fields) -> queries.Page[models.Task]:
    """Lists tasks, newest first."""
    with auth.reading() as session:
        return queries.tasks(session, **wanted)


@blp.serves("GET", "/tasks/<uuid:task_id>")
@blp.gives(200, schemas.TaskDetailSchema, headers=("ETag",))
@blp.refuses(404)
def show(task_id: UUID) -> tuple[queries.TaskDetail, dict[str, str]]:
    """Shows a task, and whether its target can be called."""
    with auth.transaction() as session:
        detail = queries.task_detail(session, task_id)
    return detail, tag(detail.task)


@blp.serves("PATCH", "/tasks/<uuid:task_id>")
@blp.takes(web_schemas.IfMatchSchema, "headers")
@blp.takes(web_schemas.DryRunSchema, "query")
@blp.takes(schemas.TaskChangeSchema)
@blp.gives(200, schemas.TaskSchema, headers=("ETag",))
@blp.refuses(404, 409, 412, 428)
def change(
    wanted: Fields, how: Fields, fields: Fields, task_id: UUID
) -> flask.Response | tuple[models.Task, dict[str, str]]:
    """Changes what the body names of a task, or only says what that would do to the forecast."""
    if how["dry_run"]:
        return _rehearsed(partial(rehearsals.change, task_id=task_id, fields=fields, version=wanted["version"]))
    with auth.transaction() as session:
        task = tasks.change(session, db.now(session), task_id, fields, version=wanted["version"])
    return task, tag(task)


@blp.serves("DELETE", "/tasks/<uuid:task_id>")
@blp.takes(web_schemas.IfMatchSchema, "headers")
@blp.gives(204)
@blp.refuses(404, 412, 428)
def delete(wanted: Fields, task_id: UUID) -> None:
    """Deletes a task and keeps its runs."""
    with auth.transaction() as session:
        tasks.delete(session, db.now(session), task_id, version=wanted["version"])


@blp.serves("POST", "/tasks/<uuid:task_id>/pause")
@blp.takes(web_schemas.IfMatchSchema, "headers")
@blp.takes(schemas.PauseSchema, required=False)
@blp.gives(200, schemas.TaskSchema, headers=("ETag",))
@blp.refuses(404, 409, 412, 428)
def pause(wanted: Fields, fields: Fields, task_id: UUID) -> tuple[models.Task, dict[str, str]]:
    """Fires no slot of a task until it is resumed."""
    with auth.transaction() as session:
        task = tasks.pause(session, db.now(session), task_id, fields["note"], version=wanted["version"])
    return task, tag(task)


@blp.serves("POST", "/tasks/<uuid:task_id>/resume")
@blp.takes(web_schemas.IfMatchSchema, "headers")
@blp.takes(schemas.ResumeSchema, required=False)
@blp.gives(200, schemas.TaskSchema, headers=("ETag",))
@blp.refuses(404, 409, 412, 428)
def resume(wanted: Fields, fields: Fields, task_id: UUID) -> tuple[models.Task, dict[str, str]]:
    """Fires the slots of a paused task again."""
    with auth.transaction() as session:
        task = tasks.resume(session, db.now(session), task_id, fields["since"], version=wanted["version"])
    return task, tag(task)


@blp.serves("POST", "/tasks/<uuid:task_id>/run")
@blp.takes(schemas.RunNowSchema, required=False)
@blp.gives(202, schemas.RunSchema, headers=("Location",))
@blp.refuses(404)
def run(fields: Fields, task_id: UUID) -> tuple[models.Run, dict[str, str]]:
    """Runs a task now, whatever its schedule says."""
    with auth.transaction() as session:
        new = tasks.run(session, db.now(session), task_id, fields["args"], fields["kwargs"])
    return new, {"Location": flask.url_for("runs.show", run_id=new.id)}


@blp.serves("POST", "/tasks/<uuid:task_id>/backfill")
@blp.takes(schemas.BackfillSchema)
@blp.gives(202, web_schemas.BackfilledSchema)
@blp.refuses(404)
def backfill(fields: Fields, task_id: UUID) -> Fields:
    """Runs a task for its past slots that have no run."""
    with auth.transaction() as session:
        now = db.now(session)
        missing = planning.missing(session, now, queries.task(session, task_id), **fields)
        return {"runs": tasks.backfill(session, now, task_id, missing)}


@blp.serves("GET", "/tasks/<uuid:task_id>/upcoming")
@blp.takes(web_schemas.CountQuerySchema, "query")
@blp.gives(200, web_schemas.SlotsSchema)
@blp.refuses(404)
def upcoming(wanted: Fields, task_id: UUID) -> Fields:
    """Lists the next slots of a task."""
    with auth.transaction() as session:
        return {"slots": planning.coming(queries.task(session, task_id), db.now(session), wanted["count"])}


@blp.serves("GET", "/tasks/<uuid:task_id>/runs")
@blp.takes(web_schemas.TaskRunsQuerySchema, "query")
@blp.gives(200, web_schemas.RunPageSchema)
@blp.refuses(404)
def runs(wanted: Fields, task_id: UUID) -> queries.Page[models.Run]:
    """Lists the runs of a task, newest slot first; a deleted task has kept them."""
    with auth.transaction() as session:
        return queries.task_runs(session, task_id, **wanted)


def tag(task: models.Task) -> dict[str, str]:
    """The header that names a task's version, for If-Match."""
    return {"ETag": f'"{task.version}"'}
