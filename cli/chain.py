"""The chain of the audit log, computed again: each entry's hash covers its content and the hash before it. Pure."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from cli.rest import Json

START = "0" * 64
"""What stands before the first entry."""


@dataclass(frozen=True, kw_only=True)
class Break:
    """The first place at which the chain does not hold."""

    position: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a check."""

    good: int
    """Entries from the first one on that hold."""
    head: str
    """The hash of the last of them."""
    unsealed: int
    """Entries so young that they are not in the chain yet."""
    broken: Break | None


@dataclass(frozen=True, kw_only=True)
class _Link:
    position: int
    previous: str
    stated: str
    computed: str


def digest(entry: Json) -> str:
    """The hash that the entry must have."""
    content = {name: value for name, value in entry.items() if name != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check(entries: Iterable[Json]) -> Verdict:
    """Holds the entries, which may come in any order, against each other."""
    unsealed = 0
    links = []
    for entry in entries:
        if entry["position"] is None:
            unsealed += 1
        else:
            links.append(
                _Link(
                    position=entry["position"],
                    previous=entry["previous"],
                    stated=entry["hash"],
                    computed=digest(entry),
                )
            )
    good, head = 0, START
    for link in sorted(links, key=lambda link: link.position):
        reason = _wrong(link, good, head)
        if reason:
            broken = Break(position=min(good + 1, link.position), reason=reason)
            return Verdict(good=good, head=head, unsealed=unsealed, broken=broken)
        good, head = link.position, link.stated
    return Verdict(good=good, head=head, unsealed=unsealed, broken=None)


def _wrong(link: _Link, good: int, head: str) -> str | None:
    if link.position == good:
        return "two entries have this position"
    if link.position != good + 1:
        return "the entry is missing"
    if link.previous != head:
        return "it does not name the hash of the entry before it"
    if link.stated != link.computed:
        return "its content is not what was sealed"
    return None
