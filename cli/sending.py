"""Sends drafts to the server, in parts that it takes as a whole, and tells what became of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.drafts import Draft
from cli.rest import Api, CliError, Json, Refused, sentences

MAX_ITEMS = 1000
MAX_BYTES = 6 * 1024 * 1024
"""Of a part, as JSON; the server takes 8 MiB."""


@dataclass(kw_only=True)
class Outcome:
    """What was, or would be, added, changed and left as it is."""

    added: list[str] = field(default_factory=list)
    changed: list[Json] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def take(self, answer: Json) -> None:
        self.added += answer["added"]
        self.changed += answer["changed"]
        self.left += answer["left"]


class NotTaken(CliError):
    """The server refused a part: a line for each field that is wrong, with the place that it comes from."""

    def __init__(self, refused: Refused, part: Sequence[Draft], done: Outcome) -> None:
        self.lines = [_placed(field, sentence, part) for field, sentence in sentences(refused.errors)]
        before = len(done.added) + len(done.changed)
        kept = f"{before} tasks before these were imported" if before else "nothing was imported"
        said = "Some tasks are not valid" if self.lines else refused.message.rstrip(".")
        super().__init__(f"{said}: {kept}.")


def send(api: Api, drafts: Sequence[Draft], *, dry_run: bool) -> Outcome:
    """Each part is taken as a whole or not at all. Where there are several, all are tried before the first is taken."""
    parts = list(split(drafts))
    if len(parts) > 1 and not dry_run:
        _send(api, parts, dry_run=True)
    return _send(api, parts, dry_run=dry_run)


def _send(api: Api, parts: Sequence[Sequence[Draft]], *, dry_run: bool) -> Outcome:
    outcome = Outcome()
    for part in parts:
        body = {"items": [draft.fields for draft in part]}
        try:
            outcome.take(api.post("/tasks/import", body, query={"dry_run": 1 if dry_run else None}))
        except Refused as exc:
            raise NotTaken(exc, part, Outcome() if dry_run else outcome) from exc
    return outcome


def split(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    """Parts that the server takes at once."""
    part: list[Draft] = []
    size = 0
    for draft in drafts:
        more = len(json.dumps(draft.fields, ensure_ascii=False).encode())
        if part and (len(part) == MAX_ITEMS or size + more > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(draft)
        size += more
    if part:
        yield part


def _placed(path: str, sentence: str, part: Sequence[Draft]) -> str:
    """`items.3.schedule.at` as the place that the fourth of them comes from, and `schedule.at`."""
    items, _, rest = path.partition(".")
    index, _, inside = rest.partition(".")
    if items != "items" or not index.isdecimal() or int(index) >= len(part):
        return f"{path}: {sentence}"
    return f"{part[int(index)].place}: {inside or 'the task'}: {sentence}"


def rows(outcome: Outcome) -> list[Json]:
    """A row for each task that changes, and for each field of it; those that stay come last."""
    made = [_row("add", name) for name in outcome.added]
    for each in outcome.changed:
        fields: dict[str, Any] = each["fields"]
        made += [_row("change", each["name"], name, **pair) for name, pair in fields.items()]
    return made + [_row("leave", name) for name in outcome.left]


def _row(what: str, name: str, field: str = "", before: Any = None, after: Any = None) -> Json:
    return {"what": what, "task": name, "field": field, "before": before, "after": after}
