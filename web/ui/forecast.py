"""The next day, minute by minute: what falls due, against what the workers can do, and what would mend it."""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import flask

from app import db, policies
from app import forecast as forecasting
from app.forecast import outlook
from app.forecast.mends import Mend, Trouble
from app.forecast.outlook import MINUTE, Outlook, Queue
from web import auth
from web.ui import charts, pages, showing
from web.ui.pages import blp, page

TOGETHER = 5
"""Minutes that are one column of the charts: a day has 288."""

LATE = policies.GRACE.total_seconds()

SHOWN = 30
"""Late times in the table, the worst ones."""


@blp.get("/forecast")
def forecast() -> flask.Response:
    """Shows the next day, of all queues or of one."""
    wanted = pages.asked().get("queue")
    with auth.transaction() as session:
        known = forecasting.read(session, db.now(session))
    found = forecasting.look(known)
    queue = wanted if wanted in found.queues else None
    late = [spell for spell in outlook.spells(found) if queue in (None, spell.queue)]
    told = forecasting.troubles(found, late, SHOWN)
    with auth.transaction() as session:
        examples = forecasting.examples(session, found, told)
    shown = [each for each in found.queues.values() if queue in (None, each.name)]
    processes = found.processes if queue is None else sum(each.processes for each in shown)
    few = _few(found, shown)
    actor = auth.actor()
    return page(
        "forecast",
        found=found,
        queues=[_summed(each) for each in found.queues.values()],
        queue=queue,
        shown=[_summed(each) for each in shown],
        processes=processes,
        late_minutes=len({minute for each in shown for minute in each.waits.late_minutes}),
        busy=charts.busy(few, processes),
        waits=charts.waits(few),
        late=[_told(found, trouble, examples) for trouble in told],
        more=len(late) - len(told),
        confined=actor is not None and actor.is_confined,
    )


def _few(found: Outlook, shown: Sequence[Queue]) -> list[charts.Few]:
    """The columns of the charts."""
    few = []
    for end in range(TOGETHER - found.start.minute % TOGETHER, found.minutes + TOGETHER, TOGETHER):
        minutes = range(max(0, end - TOGETHER), min(end, found.minutes))
        busy = [sum(each.work[minute] for each in shown if not each.is_theirs) / MINUTE for minute in minutes]
        longest = max((each.waits.longest[minute] for each in shown for minute in minutes), default=0.0)
        due = sum(each.due[minute] for each in shown for minute in minutes)
        few.append(charts.Few(start=found.at(minutes[0]), due=due, busy=max(busy), longest=longest))
    return few


def _summed(queue: Queue) -> dict[str, Any]:
    """A row of the table of queues."""
    share, longest = max(queue.shares, default=0.0), max(queue.waits.longest, default=0.0)
    return {
        "name": queue.name,
        "is_theirs": queue.is_theirs,
        "processes": queue.processes,
        "runs": round(sum(queue.due)),
        "work": timedelta(seconds=sum(queue.work)),
        "share": None if math.isinf(share) else share,
        "longest": _wait(longest),
        "is_late": longest > LATE,
        "late_minutes": len(queue.waits.late_minutes),
    }


def _told(found: Outlook, trouble: Trouble, examples: Any) -> dict[str, Any]:
    """A late time in words."""
    spell = trouble.spell
    causes = [
        {
            "words": cause.source.words,
            "tasks": cause.tasks,
            "runs": round(cause.runs),
            "work": timedelta(seconds=cause.work),
            "example": examples.get((cause.source, cause.first)),
        }
        for cause in trouble.causes
    ]
    return {
        "start": found.at(spell.start),
        "minutes": spell.end - spell.start,
        "queue": spell.queue,
        "longest": _wait(spell.longest),
        "over": None if math.isinf(spell.longest) else _wait(spell.longest - LATE),
        "late": max(1, round(spell.late)),
        "causes": causes,
        "mends": list(_mends(trouble.mend, found.queues[spell.queue].processes)) if trouble.mend else None,
    }


def _mends(mend: Mend, have: float) -> list[str]:
    said = []
    if mend.processes is not None:
        said.append(showing.count(mend.processes, "process") + (f" in place of {have:,g}" if have else ""))
    if mend.jitter is not None:
        said.append(f"a jitter of {mend.jitter} s for the first of these schedules")
    if mend.minutes is not None:
        by = showing.count(abs(mend.minutes), "minute")
        said.append(f"the first of these {by} {'later' if mend.minutes > 0 else 'earlier'}")
    return said


def _wait(seconds: float) -> str:
    return "for ever" if math.isinf(seconds) else showing.duration(seconds * 1000)
