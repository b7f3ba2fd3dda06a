"""The overview: is the promise kept, what runs, what comes, what failed, who is there."""

from datetime import timedelta
from typing import Any

import flask

from app import canary, db, incidents, nodes, queries, summaries
from app.states import RunState, TaskState
from web import auth
from web.ui import charts
from web.ui.pages import blp, page

SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
SHOWN = 8
"""Rows of each short list."""


@blp.get("/")
def overview() -> flask.Response:
    """Shows how it goes."""
    with auth.transaction() as session:
        now = db.now(session)
        cluster, songs = queries.cluster(session, now), canary.songs(session, now)
    with auth.reading() as session:
        shown: dict[str, Any] = {
            "promises": {name: summaries.promise(session, now, span) for name, span in SPANS.items()},
            "running": queries.runs(session, state=RunState.RUNNING, limit=SHOWN, after=None).items,
            "failed": queries.runs(session, state=RunState.FAILED, limit=SHOWN, after=None).items,
            "incidents": queries.incidents(session, is_open=True, limit=SHOWN, after=None).items,
            "open": incidents.counts(session),
            "coming": queries.tasks(session, state=TaskState.ACTIVE, order="next", limit=SHOWN, after=None).items,
            "cluster": cluster,
            "is_new": not queries.has_tasks(session),
            "songs": songs,
        }
        minutes = summaries.minutes(session, now)
    shown["outcomes"] = charts.outcomes(minutes)
    shown["latenesses"] = charts.latenesses(minutes)
    for kind in ("beats", "workers"):
        shown[kind] = [node for node in getattr(shown["cluster"], kind) if nodes.is_present(node, now)]
    return page("overview", **shown)
