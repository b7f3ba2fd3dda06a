"""Leases: which beat may ring which bucket. RedBeat's lock keys, one per bucket, held for seconds.

A lease is an optimisation, not a fence: it keeps two beats from doing the same work. What makes a second
ringing harmless is PostgreSQL's unique slot. Still, a beat stops in time: it trusts a lease only until a
second before it runs out, on its own monotonic clock, counted from before the renewal was sent.
"""

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any
from uuid import uuid4

import redis

from app import metrics
from beat import entries

TTL = 4.0
"""Seconds for which a lease is held. Integer milliseconds reach Redis: an expiry below 1 would delete the key."""

MARGIN = 1.0
"""Seconds before its end from which on a lease is not trusted."""

BEATS_KEY = "redbeat:beats"

RENEW = """
-- KEYS: the live beats, then the locks that are held   ARGV: this beat's name, TTL and the time in which a beat must
-- be heard of in ms, then the token of each lock. Returns the live beats, and for each lock whether it was renewed.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('zadd', KEYS[1], now, ARGV[1])
redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[3])
local renewed = {}
for i = 2, #KEYS do
  local ours = redis.call('get', KEYS[i]) == ARGV[i + 2]
  renewed[i - 1] = ours and redis.call('pexpire', KEYS[i], ARGV[2]) or 0
end
return {redis.call('zrange', KEYS[1], 0, -1), renewed}
"""

TAKE = """
-- KEYS: locks, those first that are wanted most   ARGV: this beat's name, TTL in ms, how many at most, the token.
-- Returns the indices of those that were taken. One that this beat holds without knowing it, as an answer was lost,
-- is taken over.
local taken = {}
for i = 1, #KEYS do
  if #taken >= tonumber(ARGV[3]) then break end
  local holder = redis.call('get', KEYS[i])
  if not holder or string.sub(holder, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then
    redis.call('set', KEYS[i], ARGV[4], 'PX', ARGV[2])
    taken[#taken + 1] = i - 1
  end
end
return taken
"""

RELEASE = """
-- KEYS: the live beats, then locks   ARGV: the name of a beat that stops, or nothing, then the token of each lock
-- Returns how many were released.
redis.call('zrem', KEYS[1], ARGV[1])
local released = 0
for i = 2, #KEYS do
  if redis.call('get', KEYS[i]) == ARGV[i] then released = released + redis.call('del', KEYS[i]) end
end
return released
"""


def uptime() -> float:
    """Seconds that also pass while the machine is suspended; those of `time.monotonic` do not on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leases:
    """The leases of one beat process over `buckets` buckets. Raises redis.RedisError where Redis is away.

    Each taking has a token of its own. So what an earlier call does late, after its answer was given up, to a
    bucket that was given back and taken again meanwhile, meets another token and does nothing.
    """

    def __init__(
        self, client: Any, buckets: int, monotonic: Callable[[], float] = uptime, name: str | None = None
    ) -> None:
        self.client = client
        self.buckets = buckets
        self.monotonic = monotonic
        self.name = name or uuid4().hex
        self.until: dict[int, float] = {}
        self.tokens: dict[int, str] = {}
        self._takings = count(1)
        self._locks = [entries.lock_key(bucket) for bucket in range(buckets)]
        # each beat reaches for the buckets in an order of its own, and gives back the last of it
        self._order = list(range(buckets))
        random.Random(self.name).shuffle(self._order)  # noqa: S311 - no secret
        self._renew = client.register_script(RENEW)
        self._take = client.register_script(TAKE)
        self._release = client.register_script(RELEASE)

    def held(self) -> set[int]:
        """The buckets that this beat may ring right now. Any thread may ask."""
        trusted = self.monotonic() + MARGIN
        return {bucket for bucket, until in tuple(self.until.items()) if until > trusted}

    def renew(self) -> None:
        """Renews what is held, takes free buckets up to the fair share, and gives back what is above it.

        One round trip, and one more while there is something to take or to give back.
        """
        share = _share(self.buckets, self._renew_held(), self.name)
        if len(self.until) < share:
            self._take_free(share - len(self.until))
        elif len(self.until) > share:
            mine = [bucket for bucket in self._order if bucket in self.until]
            self._give_back(mine[share:])

    def drop(self) -> None:
        """Trusts no lease any more, without a word to Redis, which is away: those that have not run out when it
        is back are renewed then, the others are lost."""
        self.until = dict.fromkeys(self.until, -math.inf)

    def release(self) -> None:
        """Gives everything back at once, for a clean stop. Raises nothing: what is not given back runs out."""
        try:
            self._give_back(list(self.until), stops=True)
        except redis.RedisError:
            self.drop()

    def _renew_held(self) -> list[str]:
        """Says that this beat lives and renews its leases. Returns the names of the live beats."""
        started = self.monotonic()
        mine = list(self.until)
        # who was not heard of for so long trusts none of its leases: its share is the others' once they run out
        heard = int((TTL - MARGIN) * 1000)
        args = [self.name, int(TTL * 1000), heard, *(self.tokens[bucket] for bucket in mine)]
        live, renewed = self._renew(
            keys=[BEATS_KEY, *(self._locks[bucket] for bucket in mine)], args=args, client=self.client
        )
        # a lease that ran out while this process was paused is not ours any more, even if nobody took it
        kept = [bucket for bucket, answer in zip(mine, renewed, strict=True) if answer == 1]
        metrics.LEASES.labels("lost").inc(len(mine) - len(kept))
        self.until = dict.fromkeys(kept, started + TTL)
        self.tokens = {bucket: self.tokens[bucket] for bucket in kept}
        return list(live)

    def _take_free(self, room: int) -> None:
        """Takes free buckets, at most `room`."""
        started = self.monotonic()
        token = f"{self.name}:{next(self._takings)}"
        wanted = [bucket for bucket in self._order if bucket not in self.until]
        args = [self.name, int(TTL * 1000), room, token]
        taken = self._take(keys=[self._locks[bucket] for bucket in wanted], args=args, client=self.client)
        metrics.LEASES.labels("taken").inc(len(taken))
        for index in taken:
            self.until[wanted[index]] = started + TTL
            self.tokens[wanted[index]] = token

    def _give_back(self, surplus: Collection[int], *, stops: bool = False) -> None:
        """Gives buckets back. They are not trusted from before the call on, whatever becomes of it."""
        metrics.LEASES.labels("given_back").inc(len(surplus))
        tokens = [self.tokens.pop(bucket) for bucket in surplus]
        for bucket in surplus:
            del self.until[bucket]
        keys = [BEATS_KEY, *(self._locks[bucket] for bucket in surplus)]
        self._release(keys=keys, args=[self.name if stops else "", *tokens], client=self.client)


def _share(buckets: int, live: Sequence[str], name: str) -> int:
    """How many buckets a beat may hold: shares differ by one at most, the first beats by name have the larger.

    One beat that comes makes no other's share grow, one that goes makes none shrink: a bucket never moves
    between two beats because of a third.
    """
    base, left = divmod(buckets, len(live))
    return base + (sorted(live).index(name) < left)
