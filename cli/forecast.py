"""`punctual forecast`: what is to come, which runs would be late, and what would mend it."""

from typing import Any

import click

from cli import tables
from cli.console import Command, Console, console
from cli.rest import Json

QUEUES: dict[str, tables.Column] = {
    "queue": lambda queue: queue["name"],
    "processes": lambda queue: None if queue["external"] else queue["processes"],
    "runs": lambda queue: round(queue["runs"]),
    "work s": lambda queue: None if queue["external"] else round(queue["work"]),
    "fullest minute": lambda queue: _percent(queue["share"]),
    "longest wait s": lambda queue: queue["longest"],
    "late minutes": lambda queue: queue["late_minutes"],
}
LATE: dict[str, tables.Column] = {
    "late from": lambda late: late["since"],
    "until": lambda late: late["until"],
    "queue": lambda late: late["queue"],
    "waits s": lambda late: late["longest"],
    "late runs": lambda late: round(late["runs"]),
    "mostly": lambda late: late["causes"][0]["schedule"] if late["causes"] else None,
    "would do": lambda late: mends(late["mends"] or {}),
}


@click.command(cls=Command)
@click.option("--queue", help="Of one queue alone.")
@click.option("--minutes", type=click.IntRange(1, 1440), help="So far ahead; a day where nothing is said.")
@console
def forecast(line: Console, /, **wanted: Any) -> None:
    """Tell what falls due in the next day, which runs would start late, and what would mend it."""
    found: Any = line.api.get("/forecast", wanted)
    if line.as_json:
        line.json(found)
        return
    click.echo(tables.table(found["queues"], QUEUES))
    if found["late"]:
        click.echo("\n" + tables.table(found["late"], LATE))
    if found["more"]:
        line.say(f"{found['more']} more times are late, less than these")
    if found["unknown"]:
        line.say(f"of {_percent(found['unknown'])} of the runs nobody knows how long they take: they count as nothing")
    if found["missing"]:
        line.say(f"{found['missing']} tasks are not counted: their schedules take too long to compute")


def mends(found: Json) -> str:
    """Each of what would do."""
    said = [f"{found['processes']} processes"] if found.get("processes") else []
    said += [f"jitter of {found['jitter']} s"] if found.get("jitter") else []
    if found.get("minutes"):
        said.append(f"{abs(found['minutes'])} min {'later' if found['minutes'] > 0 else 'earlier'}")
    return " or ".join(said)


def effect(line: Console, answer: Json) -> None:
    """Prints what a dry run of a task says."""
    if line.as_json:
        line.json(answer)
        return
    told = answer["forecast"]
    click.echo(tables.fields({"name": answer["task"]["name"], **told}))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"
