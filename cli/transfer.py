"""`punctual export` and `import`: tasks as files, and out of other schedulers."""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cli import bulk, crontab, drafts, parameters, sending, tables
from cli.console import Command, Console, console
from cli.drafts import Conversion
from cli.rest import CliError, Json

FORMATS = ("json", "crontab", "celery", "django-celery-beat")

COLUMNS: dict[str, tables.Column] = {
    name: lambda row, name=name: row[name]  # type: ignore[misc]
    for name in ("what", "task", "field", "before", "after")
}


@click.command("export")
@bulk.filtered
@console
def export(line: Console, /, **wanted: str | None) -> None:
    """Print the definition of each task that matches, as a line of JSON: what `import` takes."""
    for text in line.api.lines("/tasks/export", wanted):
        click.echo(text)


@click.command("import", cls=Command)
@click.argument("source", metavar="FILE")
@click.option("--from", "format_", type=click.Choice(FORMATS), default="json", show_default=True)
@click.option("--dry-run", is_flag=True, help="Tell what would change, and change nothing.")
@click.option("--skip-unconvertible", is_flag=True, help="Import the rest where something cannot be converted.")
@click.option("--system", is_flag=True, help="The crontab names a user on each line.")
@click.option("--timezone", metavar="ZONE", help="Whose wall clock a crontab means; this machine's by default.")
@click.option("--prefix", default="", metavar="TEXT", help="Before each name, such as the machine's.")
@click.option("--queue", help="For tasks that name none.")
@click.option("--label", "labels", type=parameters.LABEL, multiple=True, metavar="KEY:VALUE", help="For all of them.")
@console
def import_(line: Console, /, source: str, format_: str, **given: Any) -> None:
    """Add and change tasks by their names, so that they are as FILE says; - is standard input.

    With --from celery FILE is a module or a Python file, which is run; :attribute may name the app or the dict in it.
    """
    found = _read(source, format_, given)
    _adorn(found, given)
    drafts.refuse_doubles(found)
    for note in found.notes:
        line.say(f"note: {note}")
    for problem in found.problems:
        line.say(f"not converted: {problem}")
    if found.problems and not given["skip_unconvertible"]:
        number = len(found.problems)
        raise CliError(f"{number} could not be converted, so nothing was sent; --skip-unconvertible imports the rest.")
    _send(line, found.drafts, dry_run=given["dry_run"])


def _read(source: str, format_: str, given: Json) -> Conversion:
    if format_ != "crontab" and (given["system"] or given["timezone"]):
        raise click.UsageError("--system and --timezone go with --from crontab.")
    match format_:
        case "crontab":
            return _crontab(source, given)
        case "celery":
            from cli import celery_beat, loading  # noqa: PLC0415 - Celery takes half a second, so only where it is asked

            entries, timezone = loading.beat_schedule(source)
            return celery_beat.convert(entries, timezone=timezone)
        case "django-celery-beat":
            from cli import django_beat  # noqa: PLC0415 - as above

            return django_beat.convert(_array(source), now=datetime.now(UTC))
        case _:
            return drafts.definitions(source, parameters.read_text(source).split("\n"))


def _crontab(source: str, given: Json) -> Conversion:
    zone = given["timezone"] or local_zone()
    found = crontab.convert(parameters.read_text(source), path=source, timezone=zone, system=given["system"])
    if not given["timezone"]:
        found.note(source, f"its times are taken for {zone}'s; --timezone says otherwise")
    return found


def local_zone() -> str:
    """The name of this machine's time zone, which is that of its crontabs; UTC where it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    with suppress(OSError):
        named = named or str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")[2]
    return named if named in drafts.zones() else "UTC"


def _array(source: str) -> list[Any]:
    try:
        found = parameters.loads(parameters.read_text(source))
    except (ValueError, RecursionError) as exc:
        raise CliError(f"{source}: this is no JSON: {exc}") from None
    if not isinstance(found, list):
        raise CliError(f"{source}: this is no fixture: a JSON array of objects")
    return found


def _adorn(found: Conversion, given: Json) -> None:
    """Gives each draft what was asked for all of them."""
    for draft in found.drafts:
        fields = draft.fields
        fields["name"] = (given["prefix"] + fields["name"])[: drafts.MAX_NAME]
        if given["queue"]:
            fields.setdefault("queue", given["queue"])
        if given["labels"]:
            fields["labels"] = dict(given["labels"]) | dict(fields.get("labels") or {})


def _send(line: Console, /, ready: Sequence[drafts.Draft], *, dry_run: bool) -> None:
    try:
        outcome = sending.send(line.api, ready, dry_run=dry_run)
    except sending.NotTaken as exc:
        for text in exc.lines:
            line.say(text)
        raise
    if line.as_json:
        line.json(vars(outcome))
        return
    if ready:
        click.echo(tables.table(sending.rows(outcome), COLUMNS))
    words = ("would be added", "would be changed", "would be left") if dry_run else ("added", "changed", "left as is")
    numbers = (len(outcome.added), len(outcome.changed), len(outcome.left))
    line.say(", ".join(f"{number} {word}" for number, word in zip(numbers, words, strict=True)))
