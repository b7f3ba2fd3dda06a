"""Charts as the templates draw them: each bar and line in the units of an SVG's view box. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from math import log10
from typing import Any

from app import policies

WIDTH = 600
HEIGHT = 120
MARGIN = 15
"""So far from the end a time on the axis has no room for its label."""

OUTCOMES = ("succeeded", "waiting", "skipped", "cancelled", "failed")
"""From the bottom up: what failed lies on top, where it is seen."""

QUICKEST, SLOWEST = 1.0, 600_000.0
"""Milliseconds at the bottom and at the top of a chart of lateness, which is logarithmic."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A part of a column."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """A minute: its bars, its place, and what it says in words."""

    x: float
    width: float
    bars: list[Bar]
    told: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A level that the eye measures by."""

    y: float
    label: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A time on the axis."""

    x: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Columns and lines."""

    columns: list[Column]
    lines: list[Line]
    marks: list[Mark] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT


def outcomes(minutes: Sequence[Any]) -> Chart:
    """Runs per minute, by what became of them."""
    totals = [sum(getattr(minute, kind) for kind in OUTCOMES) for minute in minutes]
    top = _round_up(max(totals, default=0))
    columns = []
    for place, (minute, total) in enumerate(zip(minutes, totals, strict=True)):
        level, bars = float(HEIGHT), []
        for kind in OUTCOMES:
            if number := getattr(minute, kind):
                height = number / top * HEIGHT
                level -= height
                bars.append(_bar(place, len(minutes), level, height, kind))
        parts = [f"{getattr(minute, kind):,} {kind}" for kind in reversed(OUTCOMES) if getattr(minute, kind)]
        told = f"{minute.start:%H:%M} UTC: {', '.join(parts)}" if total else f"{minute.start:%H:%M} UTC: no runs"
        columns.append(_column(place, len(minutes), bars, told))
    return Chart(columns=columns, lines=[Line(y=0, label=f"{top:,}"), Line(y=HEIGHT / 2, label=f"{top / 2:,g}")])


def latenesses(minutes: Sequence[Any]) -> Chart:
    """Lateness per minute: from the median to the 99th percentile, and the worst, with the promise as a line."""
    columns = []
    for place, minute in enumerate(minutes):
        bars: list[Bar] = []
        told = f"{minute.start:%H:%M} UTC: nothing started"
        if minute.worst is not None:
            p50, p99, worst = (_height(value) for value in (minute.p50, minute.p99, minute.worst))
            bars = [
                _bar(place, len(minutes), p99, max(2.0, p50 - p99), "p99"),
                _bar(place, len(minutes), worst, 2.0, "late" if minute.worst > policies.GRACE else "worst"),
            ]
            told = f"{minute.start:%H:%M} UTC: p50 {_ms(minute.p50)}, p99 {_ms(minute.p99)}, worst {_ms(minute.worst)}"
        columns.append(_column(place, len(minutes), bars, told))
    return Chart(columns=columns, lines=_levels())


def history(runs: Sequence[Any], value: Callable[[Any], timedelta | None], kind: Callable[[Any], str]) -> Chart:
    """A bar for each run, oldest first: its lateness, or how long it took; `kind` colours it."""
    columns = []
    for place, run in enumerate(runs):
        found = value(run)
        told = f"{run.scheduled_for:%Y-%m-%d %H:%M:%S} UTC: {run.state}"
        bars: list[Bar] = []
        if found is not None:
            level = _height(found)
            bars = [_bar(place, len(runs), level, max(2.0, HEIGHT - level), kind(run))]
            told += f", {_ms(found)}"
        columns.append(_column(place, len(runs), bars, told))
    return Chart(columns=columns, lines=_levels())


@dataclass(frozen=True, kw_only=True)
class Few:
    """Some minutes that are drawn as one column: of each figure the fullest."""

    start: datetime
    due: float
    """Runs in all of them."""
    busy: float
    """Processes that the fullest of them keeps busy."""
    longest: float
    """Seconds of a wait; infinite where nobody serves."""


def busy(few: Sequence[Few], processes: float) -> Chart:
    """Processes that are kept busy, against those that there are."""
    top = _round_up(math.ceil(max([processes, *(each.busy for each in few)])))
    columns = []
    for place, each in enumerate(few):
        height = each.busy / top * HEIGHT
        kind = "late" if each.longest > policies.GRACE.total_seconds() else "due"
        bars = [_slim(place, len(few), HEIGHT - height, height, kind)] if height else []
        told = f"{each.start:%H:%M} UTC: {each.due:,.0f} runs, {each.busy:,.1f} processes busy in the fullest minute"
        columns.append(_column(place, len(few), bars, told))
    lines = [Line(y=0, label=f"{top:,}"), Line(y=HEIGHT, label="0")]
    if processes:
        lines.append(Line(y=round(HEIGHT * (1 - processes / top), 2), label=f"{processes:,g}", kind="capacity"))
        # the label of the top would lie on that of the capacity
        lines = lines[1:] if processes > top * (1 - 14 / HEIGHT) else lines
    return Chart(columns=columns, lines=lines, marks=_marks(few))


def waits(few: Sequence[Few]) -> Chart:
    """The longest wait from a slot to its start, with the promise as a line."""
    columns = []
    for place, each in enumerate(few):
        is_late = each.longest > policies.GRACE.total_seconds()
        never = math.isinf(each.longest)
        level = 0.0 if never else _height(timedelta(seconds=min(each.longest, SLOWEST)))
        shown = each.longest * 1000 > QUICKEST
        bars = [_slim(place, len(few), level, HEIGHT - level, "late" if is_late else "due")] if shown else []
        told = "no worker" if never else "no wait" if not shown else f"waits of up to {each.longest:,.1f} s"
        columns.append(_column(place, len(few), bars, f"{each.start:%H:%M} UTC: {told}"))
    return Chart(columns=columns, lines=_levels(), marks=_marks(few))


def _marks(few: Sequence[Few]) -> list[Mark]:
    """Every third hour of the axis."""
    step = WIDTH / max(1, len(few))
    starts = [(place, each.start) for place, each in enumerate(few)]
    return [
        Mark(x=round(place * step, 2), label=f"{start:%H:%M}")
        for (_, before), (place, start) in pairwise(starts)
        if start.hour % 3 == 0 and before.hour != start.hour and place * step < WIDTH - MARGIN
    ]


def _slim(place: int, count: int, y: float, height: float, kind: str) -> Bar:
    """A bar that touches its neighbours: there are hundreds."""
    step = WIDTH / count
    return Bar(x=round(place * step, 2), y=round(y, 2), width=round(step, 2), height=round(height, 2), kind=kind)


def _levels() -> list[Line]:
    levels = [(timedelta(seconds=10), "10 s"), (timedelta(seconds=1), "1 s"), (timedelta(milliseconds=10), "10 ms")]
    return [Line(y=_height(value), label=label) for value, label in levels]


def _bar(place: int, count: int, y: float, height: float, kind: str) -> Bar:
    step = WIDTH / count
    return Bar(
        x=round(place * step + 1, 2), y=round(y, 2), width=round(step - 2, 2), height=round(height, 2), kind=kind
    )


def _column(place: int, count: int, bars: list[Bar], told: str) -> Column:
    step = WIDTH / count
    return Column(x=round(place * step, 2), width=round(step, 2), bars=bars, told=told)


def _height(value: timedelta) -> float:
    """Where a lateness lies, from the top."""
    ms = min(max(value / timedelta(milliseconds=1), QUICKEST), SLOWEST)
    return round(HEIGHT * (1 - log10(ms / QUICKEST) / log10(SLOWEST / QUICKEST)), 2)


def _ms(value: timedelta) -> str:
    return f"{value / timedelta(milliseconds=1):,.0f} ms"


def _round_up(number: int) -> int:
    """1, 2 or 5 with noughts behind it, as axes have them."""
    size = 1
    while True:
        for step in (1, 2, 5):
            if number <= step * size:
                return step * size
        size *= 10
