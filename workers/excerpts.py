"""The part of a long text that a record has room for. Room is bytes of JSON, as `execution.cut` counts them."""

import json

GAP = 64
"""Room for the words that stand where something is left out."""


def start(text: str, room: int) -> str:
    """The start of a text."""
    kept = text[:room]
    while (size := len(json.dumps(kept))) > room:
        kept = kept[: len(kept) * room // size]
    return kept


def ends(head: str, tail: str, left_out: int, room: int) -> tuple[str, bool]:
    """Both ends of a text of which `left_out` bytes are missing between them, and whether anything is."""
    if not left_out and len(json.dumps(head + tail)) <= room:
        return head + tail, False
    half = (room - GAP) // 2
    first, last = start(head, half), start(tail[::-1], half)[::-1]
    missing = left_out + len((head + tail).encode()) - len((first + last).encode())
    return f"{first}\n… {missing} bytes left out …\n{last}", True
