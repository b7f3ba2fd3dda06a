"""The bell: a hint over Redis that something changed, so that a beat looks now and not at its next tick.

A hint may be lost at any time and nothing depends on it: what it points at stands in PostgreSQL.
"""

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel
from sqlalchemy.orm import Session

from app import db, errors, settings

CHANNEL = "punctual:bell"
AWAY = (redis.ConnectionError, redis.TimeoutError)
QUIET = 2.0
"""Seconds without a try after a failed one: a Redis that is away must not slow the API down."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hint:
    """In `bucket` a task changed or, where `run` is named, that run waits to be sent."""

    bucket: int
    run: UUID | None = None

    def encode(self) -> str:
        return json.dumps({"bucket": self.bucket, "run": str(self.run) if self.run else None})

    @classmethod
    def decode(cls, data: str) -> "Hint | None":
        """The hint, or None where the text is not one: anybody may publish on a channel."""
        try:
            fields = json.loads(data)
            return cls(bucket=int(fields["bucket"]), run=UUID(fields["run"]) if fields["run"] else None)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def connect(**options: Any) -> redis.Redis:
    """A client of the Redis that REDIS_URL names: a server, a socket, or a master behind Sentinels.

    Sentinels are given as `redis-sentinel://[[user]:password@]host:port,host:port/service/db`: the master's user.
    """
    url = settings.load().REDIS_URL.get_secret_value()
    # one new try for a connection that went stale; redis-py's own default would wait for seconds in between
    once_more = Retry(NoBackoff(), retries=1)
    bounds = {"socket_timeout": 2, "socket_connect_timeout": 1, "retry": once_more}
    # what is no UTF-8 was put there by a stranger: it must be read to be set aside, and never raise
    options = {"decode_responses": True, "encoding_errors": "surrogateescape"} | bounds | options
    if not url.startswith("redis-sentinel://"):
        return redis.Redis.from_url(url, **options)
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = [(host, int(port or 26379)) for host, _, port in (pair.partition(":") for pair in hosts.split(","))]
    service, _, db = parts.path.strip("/").partition("/")
    user, _, password = credentials.partition(":")
    login = {"username": user or None, "password": password or None}
    # a Sentinel that is away is passed over as quickly; redis-py would try it four times with seconds in between
    asking = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout", "retry")}
    sentinel = Sentinel(sentinels, sentinel_kwargs=asking, db=int(db or 0), **login, **options)  # type: ignore[no-untyped-call]
    master: redis.Redis = sentinel.master_for(service or "mymaster")  # type: ignore[no-untyped-call]
    return master


class Ringer:
    """Rings from any thread of a process, and keeps quiet for a while after a failure."""

    def __init__(self) -> None:
        self.client = connect(socket_timeout=0.3, socket_connect_timeout=0.3)
        self.quiet_until = 0.0

    def ring(self, hint: Hint) -> None:
        if time.monotonic() < self.quiet_until:
            return
        try:
            self.client.publish(CHANNEL, hint.encode())
        except redis.RedisError as exc:
            self.quiet_until = time.monotonic() + QUIET
            log.warning("the bell could not be rung, beats will look at their next tick: %s", type(exc).__name__)


@cache
def ringer() -> Ringer:
    return Ringer()


def ring(session: Session, bucket: int, run: UUID | None = None) -> None:
    """Says, once the session's work is committed, that a task of `bucket` changed, or that `run` waits to be sent."""
    hints: set[Hint] | None = session.info.get("hints")
    if hints is None:
        hints = session.info["hints"] = set()
        db.after(session, partial(_ring_all, hints))
    hints.add(Hint(bucket=bucket, run=run))


def _ring_all(hints: Iterable[Hint]) -> None:
    for hint in hints:
        ringer().ring(hint)


def ping() -> None:
    """Raises Unavailable where Redis does not answer."""
    try:
        ringer().client.ping()
    except redis.RedisError as exc:
        raise errors.Unavailable("Redis is away.") from exc
