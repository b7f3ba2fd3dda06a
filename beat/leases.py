"""Leases: which beat may ring which bucket. RedBeat's lock keys, one per bucket, held for seconds.

A lease is an optimisation, not a fence: it keeps two beats from doing the same work. What makes a second
ringing harmless is PostgreSQL's unique slot. Still, a beat stops in time: it trusts a lease only until a
second before it runs out, on its own monotonic clock, counted from before the renewal was sent.
"""

import math
import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import uuid4

import redis
from redbeat.schedulers import LUA_EXTEND_TO_SCRIPT

from beat import entries

TTL = 4.0
"""Seconds for which a lease is held. Integer milliseconds reach Redis: an expiry below 1 would delete the key."""

MARGIN = 1.0
"""Seconds before its end from which on a lease is not trusted."""

BEATS_KEY = "redbeat:beats"

ANNOUNCE = """
-- KEYS: the live beats   ARGV: this beat's token, TTL in ms. Returns how many beats live, this one included.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('zadd', KEYS[1], now, ARGV[1])
redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[2])
return redis.call('zcard', KEYS[1])
"""

RELEASE = """
-- KEYS: lock   ARGV: token
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


class Leases:
    """The leases of one beat process over `buckets` buckets. Raises redis.RedisError where Redis is away."""

    def __init__(self, client: Any, buckets: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.client = client
        self.buckets = buckets
        self.monotonic = monotonic
        self.token = uuid4().hex
        self.until: dict[int, float] = {}
        self._extend = client.register_script(LUA_EXTEND_TO_SCRIPT)
        self._announce = client.register_script(ANNOUNCE)
        self._release = client.register_script(RELEASE)

    def held(self) -> set[int]:
        """The buckets that this beat may ring right now."""
        trusted = self.monotonic() + MARGIN
        return {bucket for bucket, until in self.until.items() if until > trusted}

    def renew(self) -> None:
        """Renews what is held, takes free buckets up to the fair share, and gives back what is above it."""
        live, kept = self._renew_held()
        share = math.ceil(self.buckets / max(live, 1))
        self._take(sorted(set(range(self.buckets)) - kept, key=self._preference), share - len(kept))
        self._give_back(sorted(self.until, key=self._preference)[share:])

    def drop(self) -> None:
        """Trusts no lease any more, without a word to Redis, which is away: those that have not run out when it
        is back are renewed then, the others are lost."""
        self.until = dict.fromkeys(self.until, -math.inf)

    def release(self) -> None:
        """Gives everything back at once, for a clean stop. Raises nothing: what is not given back runs out."""
        try:
            self._give_back(list(self.until))
            self.client.zrem(BEATS_KEY, self.token)
        except redis.RedisError:
            self.drop()

    def _renew_held(self) -> tuple[int, set[int]]:
        """Says that this beat lives and renews its leases. Returns the number of live beats, and what is kept."""
        started = self.monotonic()
        mine = list(self.until)
        pipe = self.client.pipeline(transaction=False)
        self._announce(keys=[BEATS_KEY], args=[self.token, int(TTL * 1000)], client=pipe)
        for bucket in mine:
            self._extend(keys=[entries.lock_key(bucket)], args=[self.token, int(TTL * 1000)], client=pipe)
        live, *renewed = pipe.execute()
        # a lease that ran out while this process was paused is not ours any more, even if nobody took it
        kept = {bucket for bucket, answer in zip(mine, renewed, strict=True) if answer == 1}
        self.until = dict.fromkeys(kept, started + TTL)
        return int(live), kept

    def _take(self, candidates: Collection[int], room: int) -> None:
        """Takes free buckets, at most `room`. Another beat may be first at each: then it is not free."""
        if room <= 0:
            return
        started = self.monotonic()
        free = self._free(candidates)[:room]
        pipe = self.client.pipeline(transaction=False)
        for bucket in free:
            pipe.set(entries.lock_key(bucket), self.token, nx=True, px=int(TTL * 1000))
        for bucket, taken in zip(free, pipe.execute() if free else [], strict=True):
            if taken:
                self.until[bucket] = started + TTL

    def _free(self, candidates: Collection[int]) -> list[int]:
        ordered = list(candidates)
        holders = self.client.mget([entries.lock_key(bucket) for bucket in ordered]) if ordered else []
        return [bucket for bucket, holder in zip(ordered, holders, strict=True) if holder is None]

    def _give_back(self, surplus: Collection[int]) -> None:
        pipe = self.client.pipeline(transaction=False)
        for bucket in surplus:
            self.until.pop(bucket, None)
            self._release(keys=[entries.lock_key(bucket)], args=[self.token], client=pipe)
        if surplus:
            pipe.execute()

    def _preference(self, bucket: int) -> int:
        """Each beat reaches for the buckets in an order of its own, so that two seldom reach for the same."""
        return hash((self.token, bucket))
