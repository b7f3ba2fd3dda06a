"""Charts as the templates draw them: each bar and line in the units of an SVG's view box. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import log10
from typing import Any

from app import policies

WIDTH = 600
HEIGHT = 120
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


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Columns and lines."""

    columns: list[Column]
    lines: list[Line]
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
