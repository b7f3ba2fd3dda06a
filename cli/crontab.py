"""Crontabs, of a user or of the system, as tasks of `shell.run`. Pure: text in, tasks out.

The source for what a line means is Debian's crontab(5): a setting counts for the lines below it; `%` ends the command
and begins its standard input unless a backslash stands before it, which then goes away.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime

from cronsim import CronSim, CronSimError

from cli.drafts import AS_BEFORE, Conversion, Names, Unconvertible, zones
from cli.rest import Json

FIELDS = 5
NICKNAMES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
SHELL = "/bin/sh"
TITLE = 80
"""Characters of a command that are its task's name."""

_SETTING = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z_][^\s="']*))\s*=\s*(.*?)\s*""")
_QUOTED = re.compile(r"""(["'])(.*)\1""")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_HEADING = re.compile(r"\b(minute|hour|month|week)\b\s*\(?[01]\s*-|\bm(in)?\s+h(our)?\b|\bdo[mw]\b", re.IGNORECASE)
"""What stands above the columns of many a crontab."""
_START = datetime(2000, 1, 1)  # noqa: DTZ001 - a wall-clock time; whether a line ever matches is asked from here


@dataclass(kw_only=True)
class _State:
    """What the lines above have said."""

    timezone: str
    shell: str = SHELL
    env: dict[str, str] = field(default_factory=dict)
    comment: str | None = None
    users: set[str] = field(default_factory=set)


def convert(text: str, *, path: str = "crontab", timezone: str = "UTC", system: bool = False) -> Conversion:
    """The tasks of a crontab; `system`: each line names a user before its command."""
    found, names, state = Conversion(), Names(), _State(timezone=timezone)
    for number, line in enumerate(text.split("\n"), 1):
        place, bare = f"{path}:{number}", line.strip()
        setting = _SETTING.fullmatch(bare)
        if bare.startswith("#"):
            state.comment = _title_of_block(state.comment, bare)
            continue
        if setting:
            _set(state, setting, place, found, timezone)
        elif bare:
            _add(state, bare, place, found, names, system=system)
        state.comment = None
    return found


def _add(state: _State, line: str, place: str, found: Conversion, names: Names, *, system: bool) -> None:
    try:
        fields, user = _job(line, state, system=system)
    except Unconvertible as exc:
        found.miss(place, str(exc))
        return
    found.add(place, fields | {"name": names.unique(fields["name"])})
    if user and user not in state.users:
        state.users.add(user)
        found.note(place, f"shell.run runs it as the worker's user, not as {user}")


def _title_of_block(title: str | None, line: str) -> str | None:
    """What the comments above a job call it: their first line since a ruler or a heading. Settings and jobs that are
    commented out say nothing."""
    said = line.strip("#- \t=*")
    if not re.search(r"\w\w", said) or _HEADING.search(said):
        return None
    words = line.lstrip("# \t").split(None, FIELDS)
    is_job = words[0] in (*NICKNAMES, "@reboot") or (len(words) > FIELDS and _is_expression(" ".join(words[:FIELDS])))
    return title if is_job or _SETTING.fullmatch(said) else title or said


def _set(state: _State, setting: re.Match[str], place: str, found: Conversion, timezone: str) -> None:
    name = setting[1] or setting[2] or setting[3]
    quoted = _QUOTED.fullmatch(setting[4])
    value = quoted[2] if quoted else setting[4]
    match name:
        case "CRON_TZ":
            state.timezone = value or timezone
        case "SHELL":
            state.shell = value or SHELL
        case "MAILTO":
            if value:
                found.note(place, f"no mail is sent to {value}: a run keeps its output")
        case _:
            state.env[name] = value
            if name == "TZ" and value != state.timezone:
                found.note(place, f"TZ is the commands' own, as in Debian's cron; their times are {state.timezone}'s")


def _job(line: str, state: _State, *, system: bool) -> tuple[Json, str | None]:
    """The task of a line, and the user that it names. Raises Unconvertible."""
    expression, rest = _expression(line)
    user, rest = _first(rest) if system else (None, rest)
    if not rest:
        raise Unconvertible("it has no command" + (" after its user" if system else ""))
    command = _command(rest)
    if state.timezone not in zones():
        raise Unconvertible(f"the time zone {state.timezone!r} is not known")
    home = {"cwd": state.env["HOME"]} if state.env.get("HOME") else {}
    made = {
        "name": state.comment or _title(command),
        "description": "From a crontab." if not user else f"From a crontab, where it ran as {user}.",
        "target": "shell.run",
        "kwargs": {"argv": [state.shell, "-c", command], "env": dict(state.env)} | home,
        "schedule": {"type": "cron", "expression": expression, "timezone": state.timezone},
    }
    return made | AS_BEFORE, user


def _expression(line: str) -> tuple[str, str]:
    """When, and the rest of the line. Raises Unconvertible."""
    if line.startswith("@"):
        nickname, rest = _first(line)
        if nickname.lower() == "@reboot":
            raise Unconvertible("@reboot: nothing here knows when a machine starts")
        if nickname.lower() not in NICKNAMES:
            raise Unconvertible(f"{nickname}: there is no such nickname")
        return nickname.lower(), rest
    words = line.split(None, FIELDS)
    expression = " ".join(words[:FIELDS])
    if len(words) < FIELDS or not _is_expression(expression):
        raise Unconvertible(f"{expression!r} is no time that cron knows and that ever comes")
    return expression, words[FIELDS] if len(words) > FIELDS else ""


def _is_expression(expression: str) -> bool:
    """Whether the five fields can be read, and ever match."""
    try:
        next(CronSim(expression, _START))
    except (CronSimError, ValueError, StopIteration):  # a number of thousands of digits is a ValueError
        return False
    return True


def _command(text: str) -> str:
    if "%" in _ESCAPED.sub("", text):
        raise Unconvertible(r"its command has a %, after which cron gives standard input: write \% for a percent sign")
    return _ESCAPED.sub(lambda pair: "%" if pair[1] == "%" else pair[0], text)


def _title(command: str) -> str:
    short = " ".join(command.split())
    return short if len(short) <= TITLE else short[: TITLE - 1].rstrip() + "…"


def _first(text: str) -> tuple[str, str]:
    first, *rest = text.split(None, 1) or [""]
    return first, rest[0] if rest else ""
