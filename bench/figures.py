"""Figures and their table. Measures nothing."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

OURS, STOCK = "punctual", "stock"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One value that one round gave. `system` says whose it is: ours, or stock Celery's for the same work."""

    what: str
    value: float
    unit: str
    system: str = OURS


@dataclass(kw_only=True)
class Row:
    """All rounds of one figure."""

    what: str
    unit: str
    system: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def rows(figures: Sequence[Figure]) -> list[Row]:
    """One row per figure and system, in the order in which they were first measured."""
    found: dict[tuple[str, str], Row] = {}
    for figure in figures:
        key = (figure.what, figure.system)
        row = found.setdefault(key, Row(what=figure.what, unit=figure.unit, system=figure.system))
        row.values.append(figure.value)
    return list(found.values())


def ratio(ours: Row, stock: Row) -> float | None:
    """How many times better ours is: for a rate ours over stock's, for a time the other way round."""
    above, below = (ours, stock) if ours.unit.endswith("/s") else (stock, ours)
    return above.median / below.median if above.median > 0 and below.median > 0 else None


def table(measured: Sequence[Row]) -> str:
    """The table for a terminal: stock's rows stand by themselves, with their spread, and as a ratio beside ours."""
    stock = {row.what: row for row in measured if row.system == STOCK}
    lines = [f"{'what':<58} {'median':>10} {'least':>10} {'most':>10} {'unit':<10} ratio"]
    for row in measured:
        name = row.what if row.system == OURS else f"{row.what}, stock"
        beside = stock.get(row.what) if row.system == OURS else None
        times = ratio(row, beside) if beside else None
        shown = " ".join(f"{value:>10,.2f}" for value in (row.median, min(row.values), max(row.values)))
        lines.append(f"{name:<58} {shown} {row.unit:<10} {f'{times:.1f}x' if times else ''}".rstrip())
    return "\n".join(lines)


def save(measured: Sequence[Row], path: Path) -> None:
    """Every value of every row, as JSON."""
    shown = [
        {"what": row.what, "system": row.system, "unit": row.unit, "median": row.median, "values": row.values}
        for row in measured
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
