"""The part of a long text that a record has room for. Rooms are measured as JSON, as `execution.cut` measures."""

import json


def start(text: str, room: int) -> str:
    """The start of a text, of at most `room` bytes as JSON."""
    kept = text[:room]
    while len(json.dumps(kept)) > room:
        kept = kept[: len(kept) * room // len(json.dumps(kept))]
    return kept


def ends(head: str, tail: str, left_out: int, room: int) -> str:
    """Both ends of a text of which `left_out` bytes are missing between them, of at most `room` bytes as JSON."""
    gap = f"\n… {left_out} bytes left out …\n" if left_out else ""
    if len(json.dumps(head + gap + tail)) <= room:
        return head + gap + tail
    half = (room - 64) // 2
    first, last = start(head, half), start(tail[::-1], half)[::-1]
    missing = left_out + len((head + tail).encode()) - len((first + last).encode())
    return f"{first}\n… {missing} bytes left out …\n{last}"
