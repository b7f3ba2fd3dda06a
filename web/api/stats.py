"""Statistics: is the promise kept, and what was in its way where it was not."""

from datetime import timedelta
from typing import Any

from app import db, queries, stats
from web import auth, reports
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("stats", "How it went.")

HOUR = timedelta(hours=1)


@blp.serves("GET", "/stats")
@blp.takes(reports.StatsQuerySchema, "query")
@blp.gives(200, reports.StatsSchema)
@blp.refuses(404)
def show(wanted: Fields) -> dict[str, Any]:
    """Counts runs by state, how late they started, and which stage made them late."""
    if "task_id" in wanted:
        with auth.transaction() as session:  # a new one is found at once
            queries.find_task(session, wanted["task_id"])
    with auth.reading() as session:
        now = db.now(session)
        found = stats.read(session, now, wanted.get("since", now - HOUR), wanted.get("task_id"))
    return {
        "since": found.since,
        "until": found.until,
        "runs": found.runs,
        "in_time": found.in_time,
        "lateness": {"p50_ms": _ms(found.p50), "p99_ms": _ms(found.p99), "max_ms": _ms(found.worst)},
        "late": {
            "runs": found.late,
            "stages": {
                name: {"runs": stage.runs, "p50_ms": _ms(stage.p50), "max_ms": _ms(stage.longest)}
                for name, stage in found.stages.items()
            },
        },
    }


def _ms(took: timedelta | None) -> float | None:
    return None if took is None else round(took / timedelta(milliseconds=1), 1)
