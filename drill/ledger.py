"""What the system says of itself: the rows of `runs`, and their attempts, as plain values. Plain SQL, no code of ours
on the way, so that a fault in it cannot hide here."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

RUNS = """
SELECT id::text AS run, task_name AS task, scheduled_for AS slot, trigger, state, reason, missed, attempt,
       fired_at, published_at, started_at, attempt_started_at, finished_at
FROM runs WHERE starts_with(task_name, %(prefix)s) ORDER BY scheduled_for, id
"""

ATTEMPTS = """
SELECT attempts.run_id::text AS run, attempts.attempt, attempts.worker, attempts.started_at, attempts.finished_at,
       attempts.outcome
FROM attempts JOIN runs ON runs.id = attempts.run_id AND runs.scheduled_for = attempts.scheduled_for
WHERE starts_with(runs.task_name, %(prefix)s) ORDER BY attempts.attempt
"""

ENDED = frozenset({"succeeded", "failed", "cancelled", "skipped"})


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A past try of a run."""

    attempt: int
    worker: str | None
    started_at: datetime | None
    finished_at: datetime
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run, as it is recorded."""

    run: str
    task: str
    slot: datetime
    trigger: str = "schedule"
    state: str = "succeeded"
    reason: str | None = None
    missed: int = 0
    attempt: int = 1
    fired_at: datetime | None = None
    published_at: datetime | None = None
    started_at: datetime | None = None
    attempt_started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def claims(self) -> int:
        """How many attempts were claimed: the past ones, and the current one where a worker took it.

        A run that waits for its next attempt shows the last one, which stands among the past ones too.
        """
        numbers = {past.attempt for past in self.attempts}
        if self.attempt_started_at is not None:
            numbers.add(self.attempt)
        return len(numbers)


def read(database_url: str, prefix: str) -> list[Row]:
    """The runs of the tasks whose name starts with `prefix`, the oldest slot first.

    Takes a URL as DATABASE_URL has it. Raises psycopg.OperationalError where the database is away.
    """
    url = database_url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(url, row_factory=dict_row, connect_timeout=5) as connection:
        # one snapshot: a run whose attempts grow in between must not be seen half
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        runs = connection.execute(RUNS, {"prefix": prefix}).fetchall()
        past: dict[str, list[Attempt]] = defaultdict(list)
        for fields in connection.execute(ATTEMPTS, {"prefix": prefix}):
            past[fields.pop("run")].append(Attempt(**fields))
    return [_row(fields, past) for fields in runs]


def _row(fields: dict[str, Any], past: dict[str, list[Attempt]]) -> Row:
    return Row(**fields, attempts=tuple(past.get(fields["run"], ())))
