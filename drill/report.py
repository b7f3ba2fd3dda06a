"""What the drill found, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from drill.campaign import Result
from drill.checker import Judged, Offence, Outcome, Verdict
from drill.oracle import Demand

COLUMNS = (
    "fault", "hits", "slots", "on time", "late", "lost", "doubled", "early", "phantom",
    "worst lateness", "last start after the heal", "bound", "verdict",
)  # fmt: skip
FINE = frozenset({Outcome.ON_TIME, Outcome.OPEN, Outcome.OVERTAKEN})


def table(results: Sequence[Result], *, markdown: bool = False) -> str:
    """One line per fault."""
    rows = [COLUMNS, *(_cells(result) for result in results)]
    if markdown:
        rows.insert(1, ("---",) * len(COLUMNS))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def line(result: Result) -> str:
    """One fault in a line."""
    told = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, _cells(result), strict=True))
    grown = [f"{name} {early:.0f} early on, {late:.0f} at the end" for name, (early, late) in result.growth.items()]
    return "; ".join([told, *grown])


def _cells(result: Result) -> tuple[str, ...]:
    end = (str(result.bound), "kept" if result.kept else f"BROKEN: {'; '.join(result.broken)}")
    hits = str(len(result.committed))
    verdict = result.verdict
    if verdict is None:
        return (result.fault, hits, *["?"] * 9, *end)
    numbers = (
        verdict.slots,
        verdict.on_time,
        verdict.late,
        verdict.lost,
        verdict.doubled,
        verdict.counts[Offence.EARLY],
        verdict.counts[Offence.PHANTOM],
    )
    worst = f"{verdict.worst:.1f} s"
    if result.bound.p99 is not None:
        worst += f", p99 {result.p99:.2f} s"
    return (result.fault, hits, *map(str, numbers), worst, f"{result.after_heal:.1f} s", *end)


def write(results: Sequence[Result], path: Path) -> None:
    """Everything about each fault, with the slots that were not on time."""
    path.write_text(json.dumps([_details(result) for result in results], indent=1, default=_plain), encoding="utf-8")


def _details(result: Result) -> dict[str, Any]:
    verdict = result.verdict
    found: dict[str, Any] = {
        "fault": result.fault,
        "bound": asdict(result.bound),
        "kept": result.kept,
        "broken": result.broken,
        "hits": [asdict(hit) for hit in result.committed],
        "answers": result.answers,
        "growth": result.growth,
        "restarts": result.restarts,
        "waited_for": sorted(result.waited_for),
    }
    if verdict is None:
        return found
    return found | {
        "slots": verdict.slots,
        "on_time": verdict.on_time,
        "late": verdict.late,
        "overtaken": verdict.overtaken,
        "retried": verdict.retried,
        "worst": verdict.worst,
        "worst_outside": verdict.worst_outside,
        "after_heal": result.after_heal,
        "by_hit": [asdict(each) for each in verdict.faults],
        "offences": {str(kind): count for kind, count in verdict.counts.items()},
        "told": verdict.offences,
        "offending": [_slot(each) for each in verdict.judged if _offends(each)],
        "records": _records(result, verdict),
    }


def _records(result: Result, verdict: Verdict) -> dict[str, Any]:
    """Everything that is known of the tasks that are told of."""
    words = {word for told in verdict.offences for word in told.split()} | {task for task, _ in result.waited_for}
    return {
        name: [asdict(each) for each in found if each.task in words]
        for name, found in (("calls", result.calls), ("rows", result.rows), ("starts", result.starts))
    }


def _offends(each: Judged) -> bool:
    return each.outcome not in FINE and each.slot.demand == Demand.MUST


def _slot(each: Judged) -> dict[str, Any]:
    return {
        "task": each.slot.task,
        "kind": each.slot.kind,
        "at": each.slot.at,
        "due": each.slot.due,
        "outcome": each.outcome,
        "lateness": each.lateness,
        "started_at": each.started_at,
        "starts": each.starts,
    }


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
