"""What the options of `tasks create` and `tasks change` mean: the JSON of a task. Asks nobody."""

from collections.abc import Callable
from typing import Any

import click

from cli import parameters
from cli.rest import Json

KINDS = ("cron", "every", "at", "rrule", "now")
ZONED = ("cron", "rrule")
PLAIN = ("name", "description", "target", "args", "kwargs", "queue", "priority", "timeout", "overlap", "max_runs")


def task(given: Json) -> Json:
    """The task that the file and the options give; an option goes before the file."""
    made = parameters.read_object(given["file"]) if given["file"] else {}
    named = {name: given[name] for name in (*PLAIN, "starts_at", "ends_at") if given[name] is not None}
    if given["labels"]:
        named["labels"] = dict(given["labels"])
    due = schedule(given)
    if due:
        named["schedule"] = due
    return made | named | dict(given["fields"])


def change(file: str | None, fields: tuple[tuple[str, Any], ...]) -> Json:
    """What is to change."""
    merged = (parameters.read_object(file) if file else {}) | dict(fields)
    if not merged:
        raise click.UsageError("Say what changes: --set field=JSON, or --file.")
    return merged


def schedule(given: Json) -> Json | None:
    """The schedule that one of the options names; None where none does."""
    asked = [kind for kind in KINDS if given[kind]]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} exclude each other.")
    kind = asked[0] if asked else None
    if given["timezone"] and kind not in ZONED:
        raise click.UsageError("--timezone goes with --cron and --rrule; other times have an offset.")
    if given["starts"] and kind != "rrule":
        raise click.UsageError("--starts goes with --rrule.")
    return _SCHEDULES[kind](given) if kind else None


def text(written: str, timezone: str | None) -> Json:
    """The schedule that somebody wrote: JSON of any kind, or a cron expression."""
    if written.lstrip().startswith("{"):
        if timezone:
            raise click.UsageError("--timezone goes with a cron expression; JSON names its own.")
        found: Json = parameters.OBJECT.convert(written, None, None)
        return found
    return _cron({"cron": written, "timezone": timezone})


def _cron(given: Json) -> Json:
    return {"type": "cron", "expression": given["cron"]} | _zone(given)


def _rrule(given: Json) -> Json:
    starts = {"starts": given["starts"]} if given["starts"] else {}
    return {"type": "rrule", "rule": given["rrule"]} | starts | _zone(given)


def _zone(given: Json) -> Json:
    return {"timezone": given["timezone"]} if given["timezone"] else {}


_SCHEDULES: dict[str, Callable[[Json], Json]] = {
    "cron": _cron,
    "every": lambda given: {"type": "interval", "every": given["every"]},
    "at": lambda given: {"type": "once", "at": given["at"]},
    "rrule": _rrule,
    "now": lambda _: {"type": "now"},
}
