"""What is to come: how much falls due in each minute, against what the workers can do, and what would mend it.

Reading is one short transaction; what follows from it is computed after it. The parts are pure but for `tasks` and
`supply`, which read: `slots` says when tasks are due, `loads` adds that up, `model` has it wait for processes,
`outlook`, `mends` and `effects` say what follows. `hours` is the same by the hour, of nothing but numbers of runs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import true
from sqlalchemy.orm import Session

from app import settings
from app.actors import Actor
from app.forecast import mends, outlook, supply, tasks
from app.forecast.mends import Trouble
from app.forecast.model import Pool
from app.forecast.outlook import Outlook, Spell
from app.forecast.tasks import Tasks
from app.models import Task

DAY = 1440
"""Minutes."""

MINUTE = timedelta(minutes=1)
MOMENT = timedelta(microseconds=1)

SHOWN = 50
"""Late times that are told of, the worst ones."""

RECENT = 15.0
"""Seconds for which an outlook is as good as a new one to whoever types at a form."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What was read: enough for an outlook."""

    tasks: Tasks
    pools: Sequence[Pool]


@dataclass(frozen=True, kw_only=True)
class Coming:
    """What comes to a queue soon."""

    queue: str
    runs: float
    work: float
    """Seconds of a process."""
    processes: int | None
    """The fewest with which all of its runs would begin as promised; None where no number would do."""


def read(session: Session, now: datetime, minutes: int = DAY) -> Known:
    """What an outlook on the next whole minutes takes, of what the session's actor sees.

    The minute that has begun is none of them: what fell due in it would be due again as the last one ends, and so would
    stand nowhere in a day, though it is due each day.
    """
    start = (now + MINUTE - MOMENT).replace(second=0, microsecond=0)
    found = tasks.read(session, start, timedelta(minutes=minutes), true())
    return Known(tasks=found, pools=supply.pools(session))


def one(session: Session, start: datetime, task: Task) -> Tasks:
    """A single task as it stands in this session, for an outlook of a day that begins at `start`. Where it is due once,
    and before that, as what is to run now, it counts in the first second: whoever asks what it brings is told."""
    session.flush()
    return tasks.held(tasks.read(session, start, timedelta(minutes=DAY), Task.id == task.id))


def look(known: Known, minutes: int = DAY) -> Outlook:
    """The outlook. Takes about a second for 100,000 tasks."""
    return outlook.look(known.tasks, known.pools, minutes, settings.load().external_queues)


def troubles(found: Outlook, late: Sequence[Spell], limit: int = SHOWN) -> list[Trouble]:
    """The worst times in which runs would be late, why, and what would mend it."""
    return mends.troubles(found, late, limit)


class _Last:
    """The outlook that was made last, and for whom. Threads may make it anew at the same time, which does no harm."""

    key: Any = None
    until = 0.0
    outlook: Outlook


def recent(actor: Actor | None, read: Callable[[], Known]) -> Outlook:
    """An outlook on what an actor sees that is some seconds old at most; `read` reads for a new one."""
    key = (actor.queues, tuple(actor.labels.items())) if actor else None
    if _Last.key == (key,) and time.monotonic() < _Last.until:
        return _Last.outlook
    found = look(read())
    _Last.key, _Last.outlook, _Last.until = (key,), found, time.monotonic() + RECENT
    return found


def examples(session: Session, found: Outlook, told: Sequence[Trouble]) -> Mapping[Any, str]:
    """The name of a task of each cause."""
    wanted = {(cause.source, cause.first) for trouble in told for cause in trouble.causes}
    return tasks.examples(session, found.slots.tasks, wanted)


def coming(session: Session, now: datetime, within: int = 15) -> list[Coming]:
    """What comes to each queue in so many minutes, and how many processes it takes: for whoever starts workers."""
    found = look(read(session, now, within), within)
    return [
        Coming(
            queue=queue.name,
            runs=sum(queue.due),
            work=sum(queue.work),
            processes=mends.processes({queue.name: found.demand.loads[queue.name]}, (), queue.name, slice(0, within)),
        )
        for queue in found.queues.values()
        if not queue.is_theirs
    ]
