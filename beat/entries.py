"""RedBeat's entries: in each bucket a sorted set of slots and a card per task. Redis rings, it decides nothing.

Keys, entries and locks are RedBeat's own, one prefix per bucket, so that RedBeat's tools can read them with
`redbeat_key_prefix = entries.prefix(bucket)`. Only the holder of a bucket's lease writes them, and each write
compares the holder's token in Redis before it changes anything: a beat that lost its lease while it was
paused writes nothing.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app import metrics

FAR = 86_400.0
"""Seconds ahead within which the next entry is told."""

DUE = """
-- KEYS: schedules   ARGV: now, how many are wanted of each
-- Returns, schedule by schedule, the members that are due, the soonest first, and the score of the next one or ''.
local found = {}
for i, key in ipairs(KEYS) do
  local due = redis.call('zrange', key, '-inf', ARGV[1], 'byscore', 'limit', 0, ARGV[2])
  local coming = redis.call('zrange', key, '(' .. ARGV[1], '+inf', 'byscore', 'limit', 0, 1, 'withscores')
  found[i] = {due, coming[2] or ''}
end
return found
"""

WRITE = """
-- KEYS: bucket by bucket its lock, schedule and mirrored   ARGV: mark ('1': the buckets are complete), then bucket by
-- bucket the token, the prefix, the number of entries, and per entry its name, its score and its card, both empty where
-- it is to go. Returns, bucket by bucket, 1 where the token holds the lease and all was written, else 0.
local written, at = {}, 2
for bucket = 1, #KEYS / 3 do
  local lock, schedule, mirrored = unpack(KEYS, 3 * bucket - 2, 3 * bucket)
  local prefix, last = ARGV[at + 1], at + 2 + 3 * ARGV[at + 2]
  written[bucket] = 0
  if redis.call('get', lock) == ARGV[at] then
    for i = at + 3, last, 3 do
      local key = prefix .. ARGV[i]
      if ARGV[i + 1] == '' then
        redis.call('zrem', schedule, key)
        redis.call('del', key)
      else
        redis.call('hset', key, 'definition', ARGV[i + 2], 'meta', '{"last_run_at": null}')
        redis.call('zadd', schedule, ARGV[i + 1], key)
      end
    end
    if ARGV[1] == '1' then redis.call('set', mirrored, '1') end
    written[bucket] = 1
  end
  at = last + 1
end
return written
"""


def prefix(bucket: int) -> str:
    """RedBeat's key prefix of a bucket; the braces keep it on one node of a Redis Cluster."""
    return f"redbeat:{{{bucket}}}:"


def schedule_key(bucket: int) -> str:
    return f"{prefix(bucket)}:schedule"


def lock_key(bucket: int) -> str:
    return f"{prefix(bucket)}:lock"


def mirrored_key(bucket: int) -> str:
    """Set once all of a bucket's tasks have their entry. It goes with everything else when Redis is emptied."""
    return f"{prefix(bucket)}:mirrored"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A task's card: ring once at `slot`; no slot, no card."""

    task_id: UUID
    target: str
    slot: datetime | None

    def arguments(self) -> tuple[str, str, str]:
        """Name, score and definition as RedBeat stores them. The schedule is a rule with one occurrence."""
        if self.slot is None:
            return str(self.task_id), "", ""
        score = self.slot.timestamp()
        schedule = {"__type__": "rrule", "freq": "SECONDLY", "count": 1, "dtstart": score}
        definition = {
            "name": str(self.task_id),
            "task": self.target,
            "args": None,
            "kwargs": None,
            "options": {},
            "schedule": schedule,
            "enabled": True,
        }
        return str(self.task_id), repr(score), json.dumps(definition, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Due:
    """What the clock says: entries to ring now, those that cannot be read, and when the next one is due."""

    tasks: dict[UUID, int]
    """Task to bucket."""
    unreadable: dict[str, int]
    """Members that are no task's key, to bucket."""
    next_at: datetime | None


class Entries:
    """Reads and writes the entries of buckets in a handful of round trips. Raises redis.RedisError."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._due = client.register_script(DUE)
        self._write = client.register_script(WRITE)

    def due(self, buckets: Collection[int], now: datetime, limit: int) -> Due:
        """The entries of these buckets that are due, the soonest first in each, at most `limit` per bucket."""
        if not buckets:
            return Due(tasks={}, unreadable={}, next_at=None)
        keys = [schedule_key(bucket) for bucket in buckets]
        answers = self._due(keys=keys, args=[now.timestamp(), limit], client=self.client)
        tasks: dict[UUID, int] = {}
        unreadable: dict[str, int] = {}
        for bucket, (members, _) in zip(buckets, answers, strict=True):
            for member in members:
                _read(member, bucket, tasks, unreadable)
        scores = [float(coming) for _, coming in answers if coming]
        # who knows what score a stranger gave: what is far ahead is looked at again before
        next_at = datetime.fromtimestamp(min(*scores, now.timestamp() + FAR), tz=UTC) if scores else None
        return Due(tasks=tasks, unreadable=unreadable, next_at=next_at)

    def write(
        self, by_bucket: Mapping[int, Sequence[Entry]], tokens: Mapping[int, str], *, complete: bool = False
    ) -> set[int]:
        """Writes entries where the token still holds the lease. Returns the buckets that were written.

        `complete` marks the buckets as holding an entry for each of their tasks.
        """
        if not by_bucket:
            return set()
        keys = [key(bucket) for bucket in by_bucket for key in (lock_key, schedule_key, mirrored_key)]
        args = ["1" if complete else ""]
        for bucket, changed in by_bucket.items():
            args += [tokens[bucket], prefix(bucket), str(len(changed)), *_flat(changed)]
        # one script and no pipeline of them, which would ask each time whether Redis knows it
        answers = self._write(keys=keys, args=args, client=self.client)
        written = {bucket for bucket, answer in zip(by_bucket, answers, strict=True) if answer}
        metrics.ENTRIES.inc(sum(len(by_bucket[bucket]) for bucket in written))
        return written

    def discard(self, bucket: int, member: str) -> None:
        """Takes a member out that is no task's key, so that it never rings again."""
        self.client.zrem(schedule_key(bucket), member.encode(errors="surrogateescape"))  # it may be no text

    def incomplete(self, buckets: Collection[int]) -> set[int]:
        """Which of these buckets must be rebuilt: they never were, or Redis was emptied."""
        pipe = self.client.pipeline(transaction=False)
        for bucket in buckets:
            pipe.exists(mirrored_key(bucket))
        return (
            {bucket for bucket, there in zip(buckets, pipe.execute(), strict=True) if not there} if buckets else set()
        )


def _read(member: str, bucket: int, tasks: dict[UUID, int], unreadable: dict[str, int]) -> None:
    try:
        tasks[UUID(member.removeprefix(prefix(bucket)))] = bucket
    except ValueError:
        unreadable[member] = bucket


def _flat(changed: Sequence[Entry]) -> Iterator[str]:
    for entry in changed:
        yield from entry.arguments()
