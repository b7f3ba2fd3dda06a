"""`punctual runs`: what ran, when, and what became of it."""

import time
from typing import Any

import click

from cli import lookup, parameters, tables
from cli.console import Console, Group, console, limited
from cli.rest import ANY, TIMEOUT, Api, Json, segment

ENDS = ("succeeded", "failed", "cancelled", "skipped")
STATES = ("pending", "queued", "running", "retrying", *ENDS)
WAIT = 30.0
"""Seconds that the server is asked to wait at once."""

PAUSE = 0.5
"""Seconds between two looks, where the server answers before its time."""

COLUMNS: dict[str, tables.Column] = {
    "id": lambda run: run["id"],
    "task": lambda run: run["task_name"],
    "scheduled for": lambda run: run["scheduled_for"],
    "state": lambda run: run["state"],
    "reason": lambda run: run["reason"],
    "attempt": lambda run: run["attempt"],
    "late by ms": lambda run: run["lateness_ms"],
}


@click.group(cls=Group)
def runs() -> None:
    """What ran, when, and what became of it."""


@runs.command("list")
@click.option("--task", metavar="TASK", help="Its id or name; the id of one that is deleted.")
@click.option("--state", type=click.Choice(STATES))
@click.option("--since", type=parameters.BACK, metavar="TIME", help="The earliest slot, or how long ago: 2h.")
@click.option("--until", type=parameters.BACK, metavar="TIME", help="The latest slot.")
@limited
@console
def index(line: Console, /, task: str | None, limit: int | None, **wanted: str | None) -> None:
    """List runs, newest slot first."""
    of = {"task_id": lookup.task_id(line.api, task)} if task else {}
    line.many(line.api.items("/runs", wanted | of, limit=limit), COLUMNS)


@runs.command()
@click.argument("run")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for its end, so long at most.")
@console
def show(line: Console, /, run: str, wait: float | None) -> None:
    """Show one run with its attempts."""
    line.one(ended(line.api, run, wait) if wait else line.api.get(f"/runs/{segment(run)}"))


@runs.command()
@click.argument("run")
@console
def cancel(line: Console, /, run: str) -> None:
    """Cancel a run: one that waits never starts, one that runs is ended."""
    line.one(line.api.post(f"/runs/{segment(run)}/cancel", match=ANY))


@runs.command()
@click.argument("run")
@console
def retry(line: Console, /, run: str) -> None:
    """Run a failed run again, as a further attempt."""
    line.one(line.api.post(f"/runs/{segment(run)}/retry", match=ANY))


def ended(api: Api, run: str, wait: float) -> Json:
    """The run once it has ended or, else, as it stands after so many seconds."""
    deadline = time.monotonic() + wait
    while True:
        began = time.monotonic()
        ask = min(max(deadline - began, 0.0), WAIT)
        found: Any = api.get(f"/runs/{segment(run)}", {"wait": int(ask)} if ask >= 1 else {}, timeout=TIMEOUT + ask)
        now = time.monotonic()
        if found["state"] in ENDS or now >= deadline:
            return dict(found)
        time.sleep(min(PAUSE, max(began + ask - now, 0.0)))
