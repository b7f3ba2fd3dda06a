"""`punctual keys`: API keys."""

import sys
from typing import Any

import click

from cli import parameters, tables
from cli.console import Console, Group, console
from cli.rest import CliError, segment

ROLES = ("viewer", "operator", "editor", "admin")

COLUMNS: dict[str, tables.Column] = {
    "id": lambda key: key["id"],
    "name": lambda key: key["name"],
    "role": lambda key: key["role"],
    "queues": lambda key: key.get("queues"),
    "labels": lambda key: [f"{name}:{value}" for name, value in (key.get("labels") or {}).items()],
    "max tasks": lambda key: key.get("max_tasks"),
    "expires": lambda key: key.get("expires_at"),
    "last used": lambda key: key.get("last_used_at"),
    "revoked": lambda key: key.get("revoked_at"),
}


@click.group(cls=Group)
def keys() -> None:
    """API keys, for administrators."""


@keys.command("list")
@console
def index(line: Console, /) -> None:
    """List the keys; none of them is shown."""
    line.many(line.api.items("/keys", {}, sized=False), COLUMNS)


@keys.command()
@click.option("--name", required=True)
@click.option("--role", type=click.Choice(ROLES), required=True)
@click.option("--queue", "queues", multiple=True, help="A queue that its tasks may use; may be repeated.")
@click.option(
    "--label",
    "labels",
    type=parameters.LABEL,
    multiple=True,
    metavar="KEY:VALUE",
    help="A label of the tasks that it may see and change; may be repeated.",
)
@click.option("--expires", "expires_at", type=parameters.AHEAD, metavar="TIME", help="A time, or 30d from now.")
@click.option("--max-tasks", type=click.IntRange(min=1), metavar="N", help="How many tasks it may have.")
@console
def create(line: Console, /, labels: tuple[tuple[str, str], ...], **given: Any) -> None:
    """Make a key. It is printed once, alone on standard output; all else goes to standard error."""
    body = given | {"labels": dict(labels)}
    made = line.api.post("/keys", {name: value for name, value in body.items() if value}, is_kept=False)
    if not isinstance(made, dict) or "key" not in made:
        raise CliError(f"{line.api.shown}: this is no answer of Punctual's API")
    if line.as_json:
        line.json(made)
        return
    click.echo(tables.fields({name: value for name, value in made.items() if name != "key"}), err=True)
    if sys.stdout.isatty():
        line.say("The key; it is not shown again:")
    click.echo(made["key"])


@keys.command()
@click.argument("key_id", metavar="ID")
@console
def revoke(line: Console, /, key_id: str) -> None:
    """Make a key void, from now on."""
    line.api.delete(f"/keys/{segment(key_id)}")
    line.one({"id": key_id, "revoked": True})
