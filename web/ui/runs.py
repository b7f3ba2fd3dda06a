"""Runs: find them, see what made one late and why one failed, cancel, retry."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import flask

from app import attempts, db, queries, runs, schemas
from app.fields import Text
from app.models import Run
from app.states import OPEN, RunState
from web import auth
from web import schemas as web_schemas
from web.ui import pages, reading, showing
from web.ui.pages import blp, done, page

LIMIT = 50


class FilterSchema(web_schemas.RunsQuerySchema):
    """What the page's form asks for; text that is no filter is said, not answered with an error page."""

    target = Text(0, 255)


@blp.get("/runs")
def all_runs() -> flask.Response:
    """Lists runs, newest slot first."""
    asked = pages.asked()
    wanted, problems = reading.filters(FilterSchema(), asked)
    task = None
    if wanted.get("task_id"):
        with auth.transaction() as session:  # a new one is found at once
            task = queries.find_task(session, wanted["task_id"])
    with auth.reading() as session:
        found = queries.runs(session, **wanted | {"limit": LIMIT})
    return page("runs", runs=found, asked=asked, problems=problems, states=list(RunState), task=task)


@blp.get("/runs/<uuid:run_id>")
def show_run(run_id: UUID) -> flask.Response:
    """Shows a run's life, its attempts, its arguments and what came of it."""
    with auth.transaction() as session:
        detail = queries.run(session, run_id)
        task = queries.find_task(session, detail.run.task_id)
    run = detail.run
    shown: dict[str, Any] = {
        "run": run,
        "task": task,
        "attempts": [*detail.attempts, *schemas.current(detail)],
        "stages": stages(run),
        "arguments": {"args": _own(run.args, task.args), "kwargs": _own(run.kwargs, task.kwargs)},
        "is_open": run.state in OPEN,
    }
    return page("run", **shown)


@blp.post("/runs/<uuid:run_id>/cancel")
def cancel_run(run_id: UUID) -> flask.Response:
    """Cancels a run."""
    with auth.transaction() as session:
        run = runs.cancel(session, db.now(session), run_id)
    ended = run.finished_at is not None
    return done("The run is cancelled." if ended else "Its worker was told to end it.", _address(run_id))


@blp.post("/runs/<uuid:run_id>/retry")
def retry_run(run_id: UUID) -> flask.Response:
    """Runs a failed run again."""
    with auth.transaction() as session:
        run = attempts.run_again(session, db.now(session), run_id)
    return done(f"Attempt {run.attempt + 1} follows at once.", _address(run_id))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run's way, and how long it took; None while it lasts or where nobody noted it."""

    name: str
    told: str
    at: datetime
    took: timedelta | None
    is_slowest: bool = False


def stages(run: Run) -> list[Stage]:
    """A run's way from its slot to its end; of a late one the stage that took longest is marked.

    Lateness is the first attempt's: what was sent after that began, was sent for another one.
    """
    first_sent = run.published_at
    if first_sent and run.started_at and first_sent > run.started_at:
        first_sent = None
    steps: list[tuple[str, str, datetime | None]] = [
        ("due", "Its slot", run.scheduled_for),
        ("fired", "Recorded by a beat", run.fired_at),
        ("published", "Sent to the queue", first_sent),
        ("started", "Claimed by a worker", run.started_at),
        ("finished", "Its outcome recorded", run.finished_at),
    ]
    way: list[Stage] = []
    for name, told, at in steps:
        if at is not None:
            took = max(at - way[-1].at, timedelta(0)) if way else None
            way.append(Stage(name=name, told=told, at=at, took=took))
    before_start = [stage for stage in way if stage.took is not None and stage.name != "finished"]
    if not showing.is_late(run) or not before_start:
        return way
    slowest = max(before_start, key=lambda stage: stage.took or timedelta(0))
    return [replace(stage, is_slowest=stage is slowest) for stage in way]


def _own(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _address(run_id: UUID) -> str:
    return flask.url_for("ui.show_run", run_id=run_id)
