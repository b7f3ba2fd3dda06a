"""Tasks: register, read, change, pause, resume, run, delete."""

from typing import Any
from uuid import UUID

import flask

from app import bell, db, models, queries, schemas, tasks
from web import schemas as web_schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("tasks", "What is to be run, and when.")


@blp.serves("POST", "/tasks")
@blp.takes(schemas.TaskSchema)
@blp.gives(201, schemas.TaskSchema, headers=("Location", "ETag"))
@blp.refuses(409)
def create(fields: Fields) -> tuple[models.Task, dict[str, str]]:
    """Registers a task."""
    with db.transaction() as session:
        task = tasks.create(session, db.now(session), fields)
    bell.ring(task.bucket)
    return task, {"Location": flask.url_for("tasks.show", task_id=task.id), **tag(task)}


@blp.serves("POST", "/tasks/bulk")
@blp.takes(web_schemas.BulkSchema)
@blp.gives(201, web_schemas.TasksSchema)
@blp.refuses(409)
def create_many(fields: Fields) -> Fields:
    """Registers up to 1,000 tasks, all or none."""
    with db.transaction() as session:
        created = tasks.create_many(session, db.now(session), fields["items"])
    for bucket in {task.bucket for task in created}:
        bell.ring(bucket)
    return {"items": created}


@blp.serves("GET", "/tasks")
@blp.takes(web_schemas.TasksQuerySchema, "query")
@blp.gives(200, web_schemas.TaskPageSchema)
def index(wanted: Fields) -> queries.Page[models.Task]:
    """Lists tasks, newest first."""
    with db.transaction() as session:
        return queries.tasks(session, **wanted)


@blp.serves("GET", "/tasks/<uuid:task_id>")
@blp.gives(200, schemas.TaskDetailSchema, headers=("ETag",))
@blp.refuses(404)
def show(task_id: UUID) -> tuple[queries.TaskDetail, dict[str, str]]:
    """Shows a task, and whether its target can be called."""
    with db.transaction() as session:
        detail = queries.task_detail(session, task_id)
    return detail, tag(detail.task)


@blp.serves("PATCH", "/tasks/<uuid:task_id>")
@blp.takes(web_schemas.IfMatchSchema, "headers")
@blp.takes(schemas.TaskChangeSchema)
@blp.gives(200, schemas.TaskSchema, headers=("ETag",))
@blp.refuses(404, 409, 412)
def change(wanted: Fields, fields: Fields, task_id: UUID) -> tuple[models.Task, dict[str, str]]:
    """Changes what the body names of a task."""
    with db.transaction() as session:
        task = tasks.change(session, db.now(session), task_id, fields, version=wanted.get("version"))
    bell.ring(task.bucket)
    return task, tag(task)


@blp.serves("DELETE", "/tasks/<uuid:task_id>")
@blp.takes(web_schemas.IfMatchSchema, "headers")
@blp.gives(204)
@blp.refuses(404, 412)
def delete(wanted: Fields, task_id: UUID) -> None:
    """Deletes a task and keeps its runs."""
    with db.transaction() as session:
        tasks.delete(session, db.now(session), task_id, version=wanted.get("version"))
    bell.ring(tasks.bucket(task_id))


@blp.serves("POST", "/tasks/<uuid:task_id>/pause")
@blp.takes(schemas.PauseSchema, required=False)
@blp.gives(200, schemas.TaskSchema, headers=("ETag",))
@blp.refuses(404, 409)
def pause(fields: Fields, task_id: UUID) -> tuple[models.Task, dict[str, str]]:
    """Fires no slot of a task until it is resumed."""
    with db.transaction() as session:
        task = tasks.pause(session, db.now(session), task_id, fields["note"])
    bell.ring(task.bucket)
    return task, tag(task)


@blp.serves("POST", "/tasks/<uuid:task_id>/resume")
@blp.takes(schemas.ResumeSchema, required=False)
@blp.gives(200, schemas.TaskSchema, headers=("ETag",))
@blp.refuses(404, 409)
def resume(fields: Fields, task_id: UUID) -> tuple[models.Task, dict[str, str]]:
    """Fires the slots of a paused task again."""
    with db.transaction() as session:
        task = tasks.resume(session, db.now(session), task_id, fields["since"])
    bell.ring(task.bucket)
    return task, tag(task)


@blp.serves("POST", "/tasks/<uuid:task_id>/run")
@blp.takes(schemas.RunNowSchema, required=False)
@blp.gives(202, schemas.RunSchema, headers=("Location",))
@blp.refuses(404)
def run(fields: Fields, task_id: UUID) -> tuple[models.Run, dict[str, str]]:
    """Runs a task now, whatever its schedule says."""
    with db.transaction() as session:
        new = tasks.run(session, db.now(session), task_id, fields["args"], fields["kwargs"])
    bell.ring_run(new, tasks.bucket(task_id))
    return new, {"Location": flask.url_for("runs.show", run_id=new.id)}


@blp.serves("POST", "/tasks/<uuid:task_id>/backfill")
@blp.takes(schemas.BackfillSchema)
@blp.gives(202, web_schemas.BackfilledSchema)
@blp.refuses(404)
def backfill(fields: Fields, task_id: UUID) -> Fields:
    """Runs a task for its past slots that have no run."""
    with db.transaction() as session:
        now = db.now(session)
        missing = tasks.missing_slots(session, now, task_id, **fields)
        return {"runs": tasks.backfill(session, now, task_id, missing)}


@blp.serves("GET", "/tasks/<uuid:task_id>/upcoming")
@blp.takes(web_schemas.CountQuerySchema, "query")
@blp.gives(200, web_schemas.SlotsSchema)
@blp.refuses(404)
def upcoming(wanted: Fields, task_id: UUID) -> Fields:
    """Lists the next slots of a task."""
    with db.transaction() as session:
        return {"slots": tasks.upcoming(session, db.now(session), task_id, wanted["count"])}


@blp.serves("GET", "/tasks/<uuid:task_id>/runs")
@blp.takes(web_schemas.TaskRunsQuerySchema, "query")
@blp.gives(200, web_schemas.RunPageSchema)
@blp.refuses(404)
def runs(wanted: Fields, task_id: UUID) -> queries.Page[models.Run]:
    """Lists the runs of a task, newest slot first; a deleted task has kept them."""
    with db.transaction() as session:
        return queries.task_runs(session, task_id, **wanted)


def tag(task: models.Task) -> dict[str, str]:
    """The header that names a task's version, for If-Match."""
    return {"ETag": f'"{task.version}"'}
