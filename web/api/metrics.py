"""Metrics: what this web counts, and what stands in the stores, which any web can tell."""

from collections.abc import Iterable, Mapping
from datetime import timedelta

import flask
from prometheus_client import Metric
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app import (
    broker,
    canary,
    db,
    dispatch,
    errors,
    exporter,
    forecast,
    incidents,
    keys,
    nodes,
    queries,
    settings,
    summaries,
)
from app.exporter import gauge
from app.models import Run, Task
from app.states import OPEN, TaskState
from web import auth
from web.blueprint import Blueprint
from web.look import Look

FRESH = 5.0
"""Seconds for which what was found holds: whoever scrapes more often reads it twice."""

AHEAD_FRESH = 30.0
"""The same for the forecast, which takes longer to make and changes less."""

WINDOWS = {
    "5m": timedelta(minutes=5),
    "30m": timedelta(minutes=30),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "3d": timedelta(days=3),
}
"""Over which the promise is looked at, for alerts of fast and slow burn."""

QUEUES = 50
"""Queues that are told apart: any client can name one. What else waits is told as one, named `other`."""

blp = Blueprint("metrics", "What Prometheus reads.", base="")


@blp.serves("GET", "/metrics")
@blp.streams("text/plain")
def show() -> flask.Response:
    """Tells what this process counts, and how the whole stands."""
    return flask.Response(exporter.text(_registry()), content_type=exporter.CONTENT_TYPE)


def _find() -> tuple[Metric, ...]:
    """How the whole stands, by the stores; where they are away, that they are."""
    try:
        with auth.transaction() as session:  # whoever asks needs no key
            cluster = queries.cluster(session, db.now(session))
            found = [*_nodes(cluster), *_due(session, cluster), *_promise(session, cluster), *_database(session)]
            found += [*_canaries(session, cluster), *_incidents(session)]
        found += _coming()
    except errors.Unavailable:
        return (gauge("punctual_up", "Whether PostgreSQL answers.", 0),)
    shown = _shown(cluster)
    depths = broker.depths(queue.name for queue in shown)  # after the transaction: it goes over the network
    return (gauge("punctual_up", "Whether PostgreSQL answers.", 1), *found, *_queues(cluster, shown, depths))


_look = Look(find=_find, fresh=FRESH)
_registry = Look(find=lambda: exporter.registry("web", _look), fresh=float("inf"))


def _nodes(cluster: queries.Cluster) -> Iterable[Metric]:
    beats = [node for node in cluster.beats if nodes.is_present(node, cluster.now)]
    workers = [node for node in cluster.workers if nodes.is_present(node, cluster.now)]
    yield gauge(
        "punctual_nodes", "Beats and workers that are there.", {"beat": len(beats), "worker": len(workers)}, "kind"
    )
    held = [bucket for node in beats for bucket in node.details["buckets"]]
    holders = {str(bucket): float(held.count(bucket)) for bucket in range(settings.load().PUNCTUAL_BUCKETS)}
    yield gauge(
        "punctual_bucket_holders",
        "Beats that hold the lease of a bucket: one, or none for seconds.",
        holders,
        "bucket",
    )
    oldest = max((nodes.tick_age(node, cluster.now).total_seconds() for node in beats), default=0.0)
    yield gauge("punctual_oldest_tick_seconds", "Since the last tick of the beat that ticked the longest ago.", oldest)
    yield gauge("punctual_tasks_set_aside", "Tasks that Punctual has paused, 100 at most.", len(cluster.set_aside))


def _due(session: Session, cluster: queries.Cluster) -> Iterable[Metric]:
    due = func.count().filter(Task.next_run_at <= cluster.now)
    overdue = func.count().filter(Task.next_run_at <= cluster.now - dispatch.OVERDUE)
    tasks = session.execute(
        select(due.label("due"), overdue.label("overdue")).where(
            Task.state == TaskState.ACTIVE, Task.next_run_at <= cluster.now
        )
    ).one()
    yield gauge("punctual_tasks_due", "Active tasks whose slot has come and that were not fired yet.", tasks.due)
    yield gauge("punctual_tasks_overdue", "Those of them that are so for 3 s.", tasks.overdue)
    rows = session.execute(
        select(Run.state, func.count().label("runs"), func.min(Run.fired_at).filter(~Run.held).label("since"))
        .where(keys.in_state(*OPEN))
        .group_by(Run.state)
    ).all()
    counts = dict.fromkeys(sorted(OPEN), 0.0) | {row.state: float(row.runs) for row in rows}
    ages = dict.fromkeys(sorted(OPEN), 0.0) | {
        row.state: max(0.0, (cluster.now - row.since).total_seconds()) for row in rows if row.since
    }
    yield gauge("punctual_runs_open", "Runs that have not ended.", counts, "state")
    yield gauge("punctual_oldest_run_seconds", "Since the first of them, not held, was fired.", ages, "state")


def _promise(session: Session, cluster: queries.Cluster) -> Iterable[Metric]:
    kept = {name: summaries.promise(session, cluster.now, span) for name, span in WINDOWS.items()}
    runs = {name: float(promise.runs) for name, promise in kept.items()}
    broken = {name: 0.0 if promise.share is None else 1 - promise.share for name, promise in kept.items()}
    yield gauge("punctual_promise_runs", "Runs that started in this time, or should have.", runs, "window")
    yield gauge("punctual_promise_broken_ratio", "The share of them that did not within 10 s.", broken, "window")


def _database(session: Session) -> Iterable[Metric]:
    """PostgreSQL counts connections of all processes; whose they are every user may see, what they do not."""
    rows = session.execute(
        text("SELECT usename, count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1")
    )
    yield gauge(
        "punctual_database_connections",
        "Connections to our database.",
        {row[0] or "": float(row[1]) for row in rows},
        "user",
    )
    most = session.scalar(text("SELECT current_setting('max_connections')::int")) or 0
    yield gauge("punctual_database_connections_max", "Connections that PostgreSQL allows in all.", most)


def _canaries(session: Session, cluster: queries.Cluster) -> Iterable[Metric]:
    songs = canary.songs(session, cluster.now)[:QUEUES]
    ages = {song.queue: song.age.total_seconds() for song in songs}
    yield gauge("punctual_canary_age_seconds", "Since the last run of a queue's canary.", ages, "queue")
    took = {song.queue: song.took.total_seconds() for song in songs if song.took is not None}
    yield gauge("punctual_canary_seconds", "From the slot of that run to its end.", took, "queue")


def _incidents(session: Session) -> Iterable[Metric]:
    kinds = {str(kind): float(count) for kind, count in incidents.counts(session).items()}
    yield gauge("punctual_incidents_open", "Incidents of tasks that are not over.", kinds, "kind")


def _find_coming() -> list[forecast.Coming]:
    with auth.transaction() as session:
        return forecast.coming(session, db.now(session))[:QUEUES]


_coming_look = Look(find=_find_coming, fresh=AHEAD_FRESH)


def _coming() -> Iterable[Metric]:
    """What the next quarter of an hour brings, for whoever starts workers."""
    coming = _coming_look()
    runs = {each.queue: float(each.runs) for each in coming}
    work = {each.queue: each.work for each in coming}
    processes = {each.queue: float(each.processes) for each in coming if each.processes is not None}
    yield gauge("punctual_forecast_runs", "Runs that fall due in the next 15 minutes.", runs, "queue")
    yield gauge("punctual_forecast_work_seconds", "The seconds that they are likely to take.", work, "queue")
    yield gauge("punctual_forecast_processes", "Processes that it takes to start them in time.", processes, "queue")


def _shown(cluster: queries.Cluster) -> list[queries.Queue]:
    """The queues that are told apart: those that somebody consumes, then those on which runs wait the longest."""
    most_wanted = sorted(
        cluster.queues, key=lambda queue: (-queue.processes, -(queue.oldest or timedelta(0)), queue.name)
    )
    return most_wanted[:QUEUES]


def _queues(cluster: queries.Cluster, shown: list[queries.Queue], depths: Mapping[str, int | None]) -> Iterable[Metric]:
    others = [queue for queue in cluster.queues if queue not in shown]
    waiting = {queue.name: float(queue.waiting) for queue in shown} | {"other": float(sum(q.waiting for q in others))}
    oldest = {queue.name: (queue.oldest or timedelta(0)).total_seconds() for queue in shown}
    processes = {queue.name: float(queue.processes) for queue in shown}
    messages = {name: float(depth) for name, depth in depths.items() if depth is not None}
    yield gauge("punctual_queue_waiting", "Runs that were fired and that no worker has claimed.", waiting, "queue")
    yield gauge("punctual_queue_oldest_seconds", "For how long the first of them has waited.", oldest, "queue")
    yield gauge("punctual_queue_processes", "Processes of the workers that consume a queue.", processes, "queue")
    yield gauge("punctual_queue_messages", "Messages that no worker has fetched.", messages, "queue")
