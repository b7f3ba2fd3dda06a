"""`punctual audit`: who changed what, and whether that record still is what was written."""

import time

import click

from cli import chain, parameters, tables
from cli.console import Console, Group, console, limited
from cli.rest import CliError

SEALED_WITHIN = 2.0
"""Seconds after which an entry is in the chain."""

ROUNDS = 3

COLUMNS: dict[str, tables.Column] = {
    "at": lambda entry: entry["at"],
    "who": lambda entry: entry["actor_name"] or entry["actor"],
    "via": lambda entry: entry["via"],
    "action": lambda entry: entry["action"],
    "subject": lambda entry: entry["subject"],
    "name": lambda entry: entry["subject_name"] or entry["subject_id"],
    "position": lambda entry: entry["position"],
}


@click.group(cls=Group)
def audit() -> None:
    """Who changed what, for administrators."""


@audit.command("list")
@click.option("--actor")
@click.option("--action")
@click.option("--subject", type=click.Choice(["task", "run", "key"]))
@click.option("--subject-id", metavar="ID")
@click.option("--since", type=parameters.BACK, metavar="TIME", help="A time, or how long ago: 2h.")
@click.option("--until", type=parameters.BACK, metavar="TIME")
@limited
@console
def index(line: Console, /, limit: int | None, **wanted: str | None) -> None:
    """List what was changed, newest first."""
    line.many(line.api.items("/audit", wanted, limit=limit), COLUMNS)


@audit.command()
@console
def verify(line: Console, /) -> None:
    """Compute the chain of all entries again; exit code 1 where it is broken."""
    verdict = _settled(line)
    if line.as_json:
        broken = vars(verdict.broken) if verdict.broken else None
        line.json({"good": verdict.good, "head": verdict.head, "unsealed": verdict.unsealed, "broken": broken})
    else:
        click.echo(f"{verdict.good} entries are good, {verdict.unsealed} are not sealed yet; head {verdict.head}")
    if verdict.broken:
        raise CliError(f"The chain is broken at position {verdict.broken.position}: {verdict.broken.reason}.")


def _settled(line: Console, /) -> chain.Verdict:
    """Entries are sealed while we read: one that was read before that is a gap, which another look closes."""
    for _ in range(ROUNDS - 1):
        verdict = chain.check(line.api.items("/audit", {}))
        if not verdict.broken or not verdict.unsealed:
            return verdict
        time.sleep(SEALED_WITHIN)
    return chain.check(line.api.items("/audit", {}))
