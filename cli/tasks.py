"""`punctual tasks`: register, look, change, pause, resume, run, delete."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import bulk, definitions, forecast, lookup, parameters, runs, tables
from cli.console import Console, Group, console, limited
from cli.rest import ANY, Json

Function = TypeVar("Function", bound=Callable[..., Any])

COLUMNS: dict[str, tables.Column] = {
    "id": lambda task: task["id"],
    "name": lambda task: task["name"],
    "state": lambda task: task["state"],
    "target": lambda task: task["target"],
    "schedule": lambda task: tables.schedule(task["schedule"]),
    "next run": lambda task: task["next_run_at"],
}


ONLY = "Only say what it would do to the forecast."


@click.group(cls=Group)
def tasks() -> None:
    """What is to be run, and when."""


@tasks.command("list")
@bulk.filtered
@limited
@console
def index(line: Console, /, limit: int | None, **wanted: str | None) -> None:
    """List tasks, newest first."""
    line.many(line.api.items("/tasks", wanted, limit=limit), COLUMNS)


@tasks.command()
@click.argument("task")
@console
def show(line: Console, /, task: str) -> None:
    """Show one task, by its id or name."""
    found = lookup.task(line.api, task)
    line.one(line.api.get(f"/tasks/{found['id']}"))  # which tells more than a list


@tasks.command()
@click.option("--file", metavar="FILE", help="A JSON object with its fields; - is standard input.")
@click.option("--name")
@click.option("--description")
@click.option("--target", help="What it calls.")
@click.option("--args", type=parameters.ARRAY, metavar="JSON")
@click.option("--kwargs", type=parameters.OBJECT, metavar="JSON")
@click.option("--label", "labels", type=parameters.LABEL, multiple=True, metavar="KEY:VALUE")
@click.option("--queue")
@click.option("--priority", type=click.IntRange(0, 9))
@click.option("--timeout", type=parameters.DURATION, metavar="DURATION")
@click.option("--overlap", type=click.Choice(["skip", "allow", "queue", "cancel"]))
@click.option("--max-runs", type=click.IntRange(min=1))
@click.option("--starts-at", type=parameters.AHEAD, metavar="TIME")
@click.option("--ends-at", type=parameters.AHEAD, metavar="TIME")
@click.option("--cron", metavar="EXPRESSION", help="Due whenever the wall clock matches.")
@click.option("--every", type=parameters.DURATION, metavar="DURATION", help="Due again and again: 90s, 5m, 2h, 1d.")
@click.option("--at", type=parameters.AHEAD, metavar="TIME", help="Due once, at a time or so long from now.")
@click.option("--rrule", metavar="RULE", help="Due as a rule of RFC 5545 says.")
@click.option("--now", is_flag=True, help="Due once, at once.")
@click.option("--starts", metavar="TIME", help="From when a rule counts.")
@click.option("--timezone", metavar="ZONE", help="Whose wall clock --cron and --rrule mean.")
@click.option("--set", "fields", type=parameters.FIELD, multiple=True, metavar="FIELD=JSON", help="Any other field.")
@click.option("--dry-run", is_flag=True, help=ONLY)
@console
def create(line: Console, /, *, dry_run: bool, **given: Any) -> None:
    """Register a task."""
    wanted = definitions.task(given)
    if dry_run:
        forecast.effect(line, line.api.post("/tasks", wanted, query={"dry_run": 1}, is_kept=False))
    else:
        line.one(line.api.post("/tasks", wanted))


@tasks.command()
@click.argument("task")
@click.option("--file", metavar="FILE", help="A JSON object with what changes; - is standard input.")
@click.option("--set", "fields", type=parameters.FIELD, multiple=True, metavar="FIELD=JSON")
@click.option("--if-version", type=click.IntRange(min=1), metavar="N", help="Only where that version still stands.")
@click.option("--dry-run", is_flag=True, help=ONLY)
@console
def change(line: Console, /, task: str, if_version: int | None, *, dry_run: bool, **given: Any) -> None:
    """Change fields of a task; what is not named stays."""
    wanted = definitions.change(**given)
    match = f'"{if_version}"' if if_version else ANY
    path = f"/tasks/{lookup.task(line.api, task)['id']}"
    if dry_run:
        forecast.effect(line, line.api.patch(path, wanted, match=match, query={"dry_run": 1}))
    else:
        line.one(line.api.patch(path, wanted, match=match))


@tasks.command()
@bulk.one_or_filtered
@click.option("--note", metavar="TEXT", help="Why.")
@console
def pause(line: Console, /, task: str | None, note: str | None, **wanted: Any) -> None:
    """Fire no slot of a task, or of all that match, until they are resumed."""
    bulk.act(line, "pause", task, wanted, {"note": note} if note else {})


@tasks.command()
@bulk.one_or_filtered
@click.option(
    "--from", "since", type=click.Choice(["now", "last"]), default="now", help="last: make up for what was missed."
)
@console
def resume(line: Console, /, task: str | None, since: str, **wanted: Any) -> None:
    """Fire the slots of a paused task, or of all that match, again."""
    bulk.act(line, "resume", task, wanted, {"from": since})


@tasks.command()
@bulk.one_or_filtered
@console
def delete(line: Console, /, task: str | None, **wanted: Any) -> None:
    """Delete a task, or all that match; their runs are kept."""
    bulk.act(line, "delete", task, wanted, {})


@tasks.command()
@click.argument("task")
@click.option("--args", type=parameters.ARRAY, metavar="JSON", help="In place of the task's own.")
@click.option("--kwargs", type=parameters.OBJECT, metavar="JSON", help="In place of the task's own.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for its end, so long at most.")
@console
def run(line: Console, /, task: str, args: Any, kwargs: Any, wait: float | None) -> None:
    """Run a task now, whatever its schedule says."""
    given = {name: value for name, value in (("args", args), ("kwargs", kwargs)) if value is not None}
    made: Json = line.api.post(f"/tasks/{lookup.task(line.api, task)['id']}/run", given)
    line.one(runs.ended(line.api, made["id"], wait) if wait else made)


@tasks.command()
@click.argument("task")
@click.option("--since", type=parameters.BACK, required=True, metavar="TIME")
@click.option("--until", type=parameters.BACK, required=True, metavar="TIME")
@console
def backfill(line: Console, /, task: str, **span: str) -> None:
    """Run a task for its past slots that have no run."""
    line.one(line.api.post(f"/tasks/{lookup.task(line.api, task)['id']}/backfill", span))
