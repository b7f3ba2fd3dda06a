"""`punctual preview`, `incidents`, `stats`, `cluster`: what a schedule means, what is not well, how late runs were, who
is there."""

from typing import Any

import click

from cli import definitions, lookup, parameters, tables
from cli.console import Command, Console, console, limited
from cli.rest import Json

INCIDENTS: dict[str, tables.Column] = {
    "task": lambda incident: incident["task_name"],
    "kind": lambda incident: incident["kind"],
    "since": lambda incident: incident["opened_at"],
    "until": lambda incident: incident["closed_at"],
    "times": lambda incident: incident["count"],
    "run": lambda incident: incident["run_id"],
}
BEATS: dict[str, tables.Column] = {
    "beat": lambda node: node["name"],
    "present": lambda node: node["present"],
    "role": lambda node: node["role"],
    "buckets": lambda node: node["buckets"],
    "last tick s ago": lambda node: node["last_tick_age"],
}
WORKERS: dict[str, tables.Column] = {
    "worker": lambda node: node["name"],
    "present": lambda node: node["present"],
    "queues": lambda node: node["queues"],
    "processes": lambda node: node["processes"],
    "running": lambda node: node["running"],
}
QUEUES: dict[str, tables.Column] = {
    "queue": lambda queue: queue["name"],
    "depth": lambda queue: queue["depth"],
    "waiting": lambda queue: queue["waiting"],
    "oldest s": lambda queue: queue["oldest_age"],
    "processes": lambda queue: queue["processes"],
}


@click.command(cls=Command)
@click.argument("schedule")
@click.option("--timezone", metavar="ZONE", help="Whose wall clock a cron expression means.")
@click.option("--count", type=click.IntRange(1, 100), default=5, show_default=True, help="How many slots.")
@console
def preview(line: Console, /, schedule: str, timezone: str | None, count: int) -> None:
    """Tell what SCHEDULE means: a cron expression, or JSON of any kind."""
    told = line.api.post("/schedules/preview", {"schedule": definitions.text(schedule, timezone), "count": count})
    if line.as_json:
        line.json(told)
        return
    click.echo("\n".join([tables.cell(told["description"]), *map(tables.cell, told["slots"])]))
    for warning in told["warnings"]:
        line.say(f"warning: {warning}")


@click.command(cls=Command)
@click.option("--task", metavar="TASK", help="Its id or name; the id of one that is deleted.")
@click.option("--over", is_flag=True, help="Those that are over.")
@limited
@console
def incidents(line: Console, /, task: str | None, limit: int | None, *, over: bool) -> None:
    """List what is not well, newest first."""
    of = {"task_id": lookup.task_id(line.api, task)} if task else {}
    line.many(line.api.items("/incidents", of | {"open": int(not over)}, limit=limit), INCIDENTS)


@click.command(cls=Command)
@click.option("--task", metavar="TASK", help="Of one task, by its id or name.")
@click.option("--since", type=parameters.BACK, metavar="TIME", help="A time, or how long ago: 2h.")
@console
def stats(line: Console, /, task: str | None, since: str | None) -> None:
    """Tell how runs ended, and how late they were."""
    of = {"task_id": lookup.task_id(line.api, task)} if task else {}
    line.one(line.api.get("/stats", of | {"since": since}))


@click.command(cls=Command)
@console
def cluster(line: Console, /) -> None:
    """Show beats, workers, queues, and what was set aside."""
    found: Any = line.api.get("/cluster")
    if line.as_json:
        line.json(found)
        return
    parts = [(found["beats"], BEATS), (found["workers"], WORKERS), (found["queues"], QUEUES)]
    click.echo("\n\n".join(tables.table(items, columns) for items, columns in parts))
    for kind, items in found["set_aside"].items():
        for item in items:
            click.echo(f"\nset aside, of {kind}: {_told(item)}")


def _told(item: Json) -> str:
    return tables.cell("; ".join(f"{name} {tables.cell(value)}" for name, value in item.items()))
