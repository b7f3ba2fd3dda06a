"""The cluster: beats, workers, queues, and what was set aside."""

from datetime import datetime
from typing import Any

from app import broker, canary, db, models, nodes, queries
from web import auth, reports
from web.blueprint import Blueprint

blp = Blueprint("cluster", "Who is there, and what waits.")


@blp.serves("GET", "/cluster")
@blp.gives(200, reports.ClusterSchema)
def show() -> dict[str, Any]:
    """Shows beats with their buckets, workers with their load, queues, and what was set aside."""
    with auth.transaction() as session:
        found = queries.cluster(session, db.now(session))
        songs = {song.queue: song for song in canary.songs(session, found.now)}
    depths = broker.depths(queue.name for queue in found.queues)  # after the transaction: it goes over the network
    return {
        "beats": [_beat(node, found.now) for node in found.beats],
        "workers": [_node(node, found.now) for node in found.workers],
        "queues": [_queue(queue, depths[queue.name], songs.get(queue.name)) for queue in found.queues],
        "set_aside": {
            "tasks": [_task(task) for task in found.set_aside],
            "queues": [noted for node in found.beats for noted in _noted(node, "queues")],
            "entries": [noted for node in found.beats for noted in _noted(node, "entries")],
        },
    }


def _node(node: models.Node, now: datetime) -> dict[str, Any]:
    seen = {"started_at": node.started_at, "seen_at": node.seen_at, "present": nodes.is_present(node, now)}
    return node.details | {"name": node.name} | seen


def _beat(node: models.Node, now: datetime) -> dict[str, Any]:
    return _node(node, now) | {"last_tick_age": round(nodes.tick_age(node, now).total_seconds(), 3)}


def _queue(queue: queries.Queue, depth: int | None, song: canary.Song | None) -> dict[str, Any]:
    return {
        "name": queue.name,
        "depth": depth,
        "waiting": queue.waiting,
        "oldest_age": None if queue.oldest is None else round(queue.oldest.total_seconds(), 3),
        "processes": queue.processes,
        "canary_age": None if song is None else round(song.age.total_seconds(), 3),
    }


def _task(task: models.Task) -> dict[str, Any]:
    return {"id": task.id, "name": task.name, "reason": task.set_aside, "at": task.updated_at}


def _noted(beat: models.Node, kind: str) -> list[dict[str, Any]]:
    """What a beat has set aside, with its name."""
    return [noted | {"beat": beat.name} for noted in beat.details["set_aside"][kind]]
