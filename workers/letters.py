"""The words of a notice: the subject and the text of a mail, and what a webhook sends. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.states import Told
from workers import masking

Notice = Mapping[str, Any]
"""As `notices.compose` makes it."""

SUBJECT = 120
"""Characters of a name in a subject."""

HAPPENED = {"failed": "failed", "late": "is late", "missed": "missed {slots}", "paused": "is paused"}
"""What is said of a task, by the kind of an incident."""

SAID = {
    "failed": "a run failed for good",
    "late": "a run has not started within 10 s of its slot",
    "missed": "slots passed without a run of their own",
    "paused": "Punctual paused it: it waits for a person",
}
ENDED = {
    "failed": "it succeeded again",
    "late": "it started in time again, or nothing of it waits any more",
    "missed": "it was fired in time again",
    "paused": "it was resumed",
}


def body(notice: Notice, pages: str) -> dict[str, Any]:
    """What a webhook sends, in the form that Standard Webhooks ask for. `pages` is the address of the pages."""
    return {
        "type": notice["type"],
        "timestamp": notice["at"],
        "data": {name: notice[name] for name in ("id", "tasks", "total", "kinds")}
        | {"incidents": [_shown(incident, pages) for incident in notice["incidents"]]},
    }


def subject(notice: Notice) -> str:
    """The subject of a mail: one line, whatever the names of tasks hold."""
    return f"[Punctual] {_headline(notice)}"


def text(notice: Notice, pages: str) -> str:
    """The text of a mail."""
    parts = [_headline(notice)] if notice["total"] > 1 else []
    parts += ["\n".join(_lines(incident, notice, pages)) for incident in notice["incidents"]]
    others = notice["total"] - len(notice["incidents"])
    if others:
        parts.append(f"And {others:,} more.")
    if pages:
        parts.append(f"All that is open: {pages}/")
    parts.append(_closing(notice))
    return "\n\n".join(parts) + "\n"


def line(text: str, most: int = 200) -> str:
    """A text on one line, without what would break a header or turn the writing around."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    short = re.sub(r"\s+", " ", plain).strip()
    return short if len(short) <= most else f"{short[: most - 1]}…"


def _headline(notice: Notice) -> str:
    is_over = _is_over(notice)
    if notice["total"] == 1:
        [incident] = notice["incidents"]
        return f"{line(incident['task_name'], SUBJECT)} {'is well again' if is_over else _happened(incident)}"
    tasks = _count(notice["tasks"], "task")
    if is_over:
        return f"{tasks} {'is' if notice['tasks'] == 1 else 'are'} well again"
    return f"{tasks}: {', '.join(f'{number:,} {kind}' for kind, number in _most_first(notice['kinds']))}"


def _most_first(kinds: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))


def _happened(incident: Notice) -> str:
    slots = "a slot" if incident["count"] == 1 else f"{incident['count']:,} slots"
    back = " again" if incident["reopened"] else ""
    return HAPPENED[incident["kind"]].format(slots=slots) + back


def _lines(incident: Notice, notice: Notice, pages: str) -> list[str]:
    """An incident in a mail."""
    is_over, kind = _is_over(notice), incident["kind"]
    told = [f"{line(incident['task_name'])}: {(ENDED if is_over else SAID)[kind]}"]
    told.append(f"  since  {_time(incident['opened_at'])}")
    if is_over:
        told.append(f"  until  {_time(incident['closed_at'])}")
    if incident["scheduled_for"]:
        told.append(f"  slot   {_time(incident['scheduled_for'])}")
    if incident["count"] > 1:
        told.append(f"  times  {incident['count']:,}")
    if incident["why"] and not is_over:
        told.append(f"  why    {line(masking.without_secrets(incident['why']))}")
    if pages and incident["run_id"]:
        told.append(f"  run    {_run(incident, pages)}")
    if pages:
        told.append(f"  task   {_task(incident, pages)}")
    return told


def _closing(notice: Notice) -> str:
    if _is_over(notice):
        return "This is the end of what you were told before."
    return "This is said once. You hear of it again when it is over."


def _shown(incident: Notice, pages: str) -> dict[str, Any]:
    """An incident in the body of a webhook."""
    why = incident["why"] and masking.without_secrets(incident["why"])
    links = {
        "task_url": _task(incident, pages) if pages else None,
        "run_url": _run(incident, pages) if pages and incident["run_id"] else None,
    }
    return {**incident, "why": why, **links}


def _task(incident: Notice, pages: str) -> str:
    return f"{pages}/tasks/{incident['task_id']}"


def _run(incident: Notice, pages: str) -> str:
    return f"{pages}/runs/{incident['run_id']}"


def _is_over(notice: Notice) -> bool:
    return bool(notice["type"] == f"incident.{Told.CLOSED}")


def _time(instant: str) -> str:
    return f"{datetime.fromisoformat(instant):%a %Y-%m-%d %H:%M:%S} UTC"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
