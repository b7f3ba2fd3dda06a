"""What the page of the command line shows can be called, and it shows every command."""

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.__main__ import main
from cli.console import Console

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
ENDS = ("|", ">", ";")


def calls():
    """The words behind each `script/punctual` of the page's blocks."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            if "script/punctual" in words:
                rest = words[words.index("script/punctual") + 1 :]
                yield rest[: next((at for at, word in enumerate(rest) if word in ENDS), len(rest))]


CALLS = list(calls())


def leaves(group, path=()):
    """Every command that does something, by its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(leaves(main))


def command_of(words):
    return next(path for path in LEAVES if tuple(words[: len(path)]) == path)


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_a_call_that_is_shown_can_be_made(words):
    path = command_of(words)
    with click.Context(main, info_name="punctual", obj=Console(url="http://127.0.0.1")) as parent:
        LEAVES[path].make_context(" ".join(path), list(words[len(path) :]), parent=parent)


def test_each_command_is_shown_and_stands_in_the_table():
    assert {command_of(words) for words in CALLS} == LEAVES.keys()
    rows = re.findall(r"^\| (`[a-z ,`]+`) \|", PAGE, re.MULTILINE)
    assert {tuple(name.split()) for row in rows for name in re.findall(r"`([^`]+)`", row)} == LEAVES.keys()


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_each_command_says_what_it_does_and_no_option_takes_a_key(path):
    command = LEAVES[path]
    assert re.match(r"[A-Z][^\n]+[.:]", command.help or "")
    options = {word for parameter in command.params for word in parameter.opts}
    assert options & {"--key", "--token", "--password"} == set()


def test_the_page_names_only_options_that_exist():
    named = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--help"}
    known = {word for command in (main, *LEAVES.values()) for each in command.params for word in each.opts}
    assert named <= known
