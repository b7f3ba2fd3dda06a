"""One task, or all that match: what pause, resume and delete have in common."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import lookup, parameters
from cli.console import Console
from cli.rest import ANY, PAGE, CliError, Json

Function = TypeVar("Function", bound=Callable[..., Any])

STATES = ("active", "paused", "completed")
DONE = {"pause": "paused", "resume": "resumed", "delete": "deleted"}


def filtered(function: Function) -> Function:
    """Options that say which tasks are meant."""
    for option in (
        click.option("--label", type=parameters.FILTER, metavar="KEY:VALUE", help="A label that they have."),
        click.option("--target", help="What they call."),
        click.option("--state", type=click.Choice(STATES)),
        click.option("--q", metavar="TEXT", help="Part of their names or descriptions."),
    ):
        function = option(function)
    return function


def one_or_filtered(function: Function) -> Function:
    """A task, or options that say which are meant, and whether that was thought over."""
    function = click.option("--yes", is_flag=True, help="Do not ask.")(function)
    return click.argument("task", required=False)(filtered(function))


def act(line: Console, action: str, task: str | None, wanted: Json, extra: Json) -> None:
    """Does it to the task that is named, or to all that match, once that is confirmed."""
    sure = wanted.pop("yes")
    filters = {name: value for name, value in wanted.items() if value}
    if bool(task) == bool(filters):
        raise click.UsageError("Name one task, or give a filter such as --label: one of the two.")
    if task:
        _one(line, action, task, extra)
        return
    if not sure:
        click.confirm(_question(line, action, filters), abort=True, err=True)
    total = _all(line, action, filters | extra)
    if line.as_json:
        line.json({"tasks": total})
    else:
        click.echo(f"{DONE[action]}: {total}")


def _one(line: Console, action: str, task: str, extra: Json) -> None:
    found = lookup.task(line.api, task)
    if action == "delete":
        line.api.delete(f"/tasks/{found['id']}")
        found = {"id": found["id"], "name": found["name"], "state": "deleted"}
    else:
        found = line.api.post(f"/tasks/{found['id']}/{action}", extra, match=ANY)
    line.one(found)


def _question(line: Console, action: str, filters: Json) -> str:
    found = len(list(line.api.items("/tasks", filters, limit=PAGE)))
    number = f"{found} or more" if found == PAGE else str(found)
    told = ", ".join(f"{name}={value}" for name, value in filters.items())
    return f"{action} every task with {told} ({number} now)?"


def _all(line: Console, action: str, body: Json) -> int:
    """The server does a part at a time. What was done before an error stays done, so that is said."""
    total = 0
    try:
        while True:
            answer: Json = line.api.post(f"/tasks/bulk/{action}", body)
            total += int(answer["tasks"])
            if not answer["more"] or not answer["tasks"]:
                return total
    except CliError:
        line.say(f"{DONE[action]} before the error: {total}")
        raise
