"""The cluster: beats, workers, queues, targets, and what was set aside."""

from urllib.parse import urlsplit

import flask

from app import broker, canary, db, queries, settings
from web import auth
from web.ui.pages import blp, page


@blp.get("/cluster")
def cluster() -> flask.Response:
    """Shows who is there and what waits."""
    with auth.transaction() as session:
        found = queries.cluster(session, db.now(session))
        songs = {song.queue: song for song in canary.songs(session, found.now)}
        targets = queries.targets(session)
    return page(
        "cluster",
        cluster=found,
        songs=songs,
        targets=targets,
        depths=broker.depths(queue.name for queue in found.queues),  # after the transaction: it goes over the network
        buckets=settings.load().PUNCTUAL_BUCKETS,
        flower=f"{flask.request.scheme}://{urlsplit(flask.request.host_url).hostname}:{settings.load().FLOWER_PORT}/",
    )
