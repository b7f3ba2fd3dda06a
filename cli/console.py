"""What commands share: how they speak to the API and to whoever called them. Knows no resource."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import click

from cli import rest, tables
from cli.rest import Json

Function = TypeVar("Function", bound=Callable[..., Any])
LIMIT = 50


@dataclass
class Console:
    """One call of the command line."""

    url: str
    as_json: bool = False

    @cached_property
    def api(self) -> rest.Api:
        return rest.connect(self.url)

    def close(self) -> None:
        if "api" in vars(self):
            self.api.close()

    def many(self, items: Iterable[Json], columns: Mapping[str, tables.Column]) -> None:
        """Prints a list: a table, or one JSON array."""
        if self.as_json:
            self.json(list(items))
        else:
            click.echo(tables.table(items, columns))

    def one(self, item: Any) -> None:
        """Prints an answer: its fields, or its JSON."""
        if self.as_json:
            self.json(item)
        else:
            click.echo(tables.fields(item))

    def json(self, value: Any) -> None:
        click.echo(json.dumps(value, ensure_ascii=False, indent=2))

    def say(self, text: str) -> None:
        """What a person should know beside the answer."""
        click.echo(rest.clean(text), err=True)


console = click.make_pass_decorator(Console)


class Command(click.Command):
    """A command that prints JSON where it is asked to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        asked = click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_as_json, help="Print JSON, for programs."
        )
        self.params.append(asked)


class Group(click.Group):
    """Commands that belong together."""

    command_class = Command
    group_class = type


def _as_json(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click's signature
    if asked:
        ctx.ensure_object(Console).as_json = True


ALL = "punctual.all"


def limited(function: Function) -> Function:
    """Options that say how much of a list is wanted: the number comes as `limit`, None where it is all."""
    everything = click.option(
        "--all", is_flag=True, is_eager=True, expose_value=False, callback=_note_all, help="The whole list."
    )
    some = click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        callback=_limit,
        help=f"At most so many; {LIMIT} where nothing is said.",
    )
    return some(everything(function))


def _note_all(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click's signature
    ctx.meta[ALL] = asked


def _limit(ctx: click.Context, _param: click.Parameter, given: int | None) -> int | None:
    return None if ctx.meta.get(ALL) else given or LIMIT
