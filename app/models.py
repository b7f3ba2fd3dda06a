"""The tables. No queries and no rules here: those live in the use cases."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Double,
    Identity,
    Index,
    Interval,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
    false,
    literal_column,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app import states
from app.messages import OWN

JSON = dict[str, Any]
OPEN_STATES = ", ".join(f"'{state}'" for state in sorted(states.OPEN))
OTHERWISE_STATES = ", ".join(f"'{state}'" for state in sorted(states.OTHERWISE))


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can speak of it, and keeps every instant aware."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own name for it
        datetime: DateTime(timezone=True),
        timedelta: Interval(),
        str: Text(),
        JSON: JSONB(),
        list[Any]: JSONB(),
    }


SYSTEM_TARGET = f"target LIKE '{OWN}%'"


def is_system(rows: Any) -> ColumnElement[bool]:
    """Whether a task, or the task of a run, is Punctual's own. In the very words of its index, which are literal."""
    found: ColumnElement[bool] = rows.target.op("LIKE", is_comparison=True)(literal_column(f"'{OWN}%'"))
    return found


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Task(Base):
    """What a client registered, and when it is next due."""

    __tablename__ = "tasks"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    bucket: Mapped[int] = mapped_column(SmallInteger)
    name: Mapped[str]
    description: Mapped[str]
    labels: Mapped[JSON]
    target: Mapped[str]
    args: Mapped[list[Any]]
    kwargs: Mapped[JSON]
    queue: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger)
    schedule: Mapped[JSON]
    starts_at: Mapped[datetime | None]
    ends_at: Mapped[datetime | None]
    max_runs: Mapped[int | None]
    jitter: Mapped[timedelta]
    overlap: Mapped[str]
    catchup_policy: Mapped[str]
    catchup_window: Mapped[timedelta | None]
    max_attempts: Mapped[int]
    backoff: Mapped[timedelta]
    backoff_max: Mapped[timedelta]
    backoff_jitter: Mapped[bool]
    timeout: Mapped[timedelta]
    pause_after_failures: Mapped[int | None]
    """How many runs in a row have to fail for it to be paused; null: never."""
    notify: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))
    """Who is told of its incidents, and of which: `on`, `webhook` and `email`. Null: as the settings have it."""
    state: Mapped[str]
    note: Mapped[str | None]
    set_aside: Mapped[str | None]
    """Why Punctual itself paused it. Whatever a person does with the task clears it."""
    next_run_at: Mapped[datetime | None]
    """The earliest slot that has not been fired. Null where none is left."""
    last_run_at: Mapped[datetime | None]
    """The latest slot that has been fired."""
    run_count: Mapped[int]
    """How many slots were fired, for `max_runs`."""
    created_at: Mapped[datetime]
    created_by: Mapped[str | None]
    """The key that registered it, for that key's `max_tasks`."""
    updated_at: Mapped[datetime]
    version: Mapped[int]
    mirrored_version: Mapped[int]
    """The version that Redis holds an entry for. Where it differs, the bucket's holder mirrors the task."""

    __table_args__ = (
        _one_of("state", states.TaskState),
        _one_of("overlap", states.Overlap),
        _one_of("catchup_policy", states.Catchup),
        Index("uq_tasks_name", "name", unique=True, postgresql_where=text("state <> 'deleted'")),
        # what is due, soonest first: the audit path, and the rebuild of the entries
        Index("ix_tasks_due", "next_run_at", "id", postgresql_where=text("state = 'active'")),
        Index("ix_tasks_unmirrored", "bucket", "next_run_at", postgresql_where=text("version <> mirrored_version")),
        Index("ix_tasks_set_aside", "updated_at", postgresql_where=text("set_aside IS NOT NULL")),
        # the list: newest first, by keyset
        Index("ix_tasks_created", "created_at", "id"),
        Index("ix_tasks_system", "target", postgresql_where=text(SYSTEM_TARGET)),
    )


class Run(Base):
    """One execution of a task for one slot. Partitioned by month of its slot."""

    __tablename__ = "runs"

    id: Mapped[UUID]
    task_id: Mapped[UUID]
    scheduled_for: Mapped[datetime]
    """The slot."""
    task_name: Mapped[str]
    target: Mapped[str]
    queue: Mapped[str]
    trigger: Mapped[str]
    missed: Mapped[int]
    """How many earlier slots this run stands for."""
    args: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    kwargs: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))
    """Arguments given for this run alone; null means the task's own."""
    state: Mapped[str]
    reason: Mapped[str | None]
    held: Mapped[bool] = mapped_column(server_default=false())
    """Pending, but not to be sent before the other runs of its task have ended: see `Overlap`."""
    cancel_reason: Mapped[str | None]
    """The wish that it be cancelled, and why: its worker ends the attempt, and no other one follows."""
    attempt: Mapped[int] = mapped_column(SmallInteger)
    """The current attempt, from 1. It fences: a move names the attempt that it speaks for."""
    worker: Mapped[str | None]
    fired_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    """When it was last handed to the broker; while pending, by whom it is being sent right now."""
    pack_id: Mapped[UUID | None]
    """The pack that it was sent in, while it is queued: so that messages can be counted."""
    started_at: Mapped[datetime | None]
    """When the first attempt started: lateness is measured from here."""
    attempt_started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    retry_at: Mapped[datetime | None]
    result: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (
        PrimaryKeyConstraint("id", "scheduled_for"),
        UniqueConstraint("task_id", "scheduled_for", name="uq_runs_task_slot"),
        _one_of("state", states.RunState),
        _one_of("reason", states.Reason),
        _one_of("trigger", states.Trigger),
        # the list of all runs: newest slot first, by keyset
        Index("ix_runs_scheduled", "scheduled_for", "id"),
        # the few that are not ended: what the chores ask for, and what the overlap policy asks of each task that is due
        Index("ix_runs_open", "state", "task_id", postgresql_where=text(f"state IN ({OPEN_STATES})")),
        Index("ix_runs_open_task", "task_id", postgresql_where=text("finished_at IS NULL")),
        Index("ix_runs_held", "task_id", postgresql_where=text("held")),
        # the lists of what did not go well, which else would pass over all that did; a success never touches it
        Index(
            "ix_runs_otherwise",
            "state",
            "scheduled_for",
            "id",
            postgresql_where=text(f"state IN ({OTHERWISE_STATES})"),
        ),
        {"postgresql_partition_by": "RANGE (scheduled_for)"},
    )


class Attempt(Base):
    """A past try of a run, kept when the next one follows. The last try stands in the run itself."""

    __tablename__ = "attempts"

    run_id: Mapped[UUID]
    scheduled_for: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(SmallInteger)
    worker: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime]
    outcome: Mapped[str]
    error: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "scheduled_for", "attempt"),
        {"postgresql_partition_by": "RANGE (scheduled_for)"},
    )


class Target(Base):
    """What the workers say they can run."""

    __tablename__ = "targets"

    name: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    signature: Mapped[str]
    parameters: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The signature as `signatures.describe` gives it; null where nobody has told, and arguments are not checked."""
    documentation: Mapped[str]
    duration: Mapped[timedelta | None]
    """How long its runs took lately: the longest that its workers saw, slowly forgotten. Null where it is unknown, or
    where the target declares that its runs must not be packed."""
    last_seen_at: Mapped[datetime]


class Answer(Base):
    """The first answer to a request that came with an idempotency key, for repeats of it."""

    __tablename__ = "answers"

    route: Mapped[str]
    """What was asked, and by whom where that matters: keys of one route say nothing about another's."""
    key: Mapped[str]
    digest: Mapped[str]
    """Of what was given: the same key with something else is a mistake."""
    answer: Mapped[Any] = mapped_column(JSONB())
    created_at: Mapped[datetime]

    __table_args__ = (PrimaryKeyConstraint("route", "key"), Index("ix_answers_created_at", "created_at"))


class ApiKey(Base):
    """A key of the API: who may do what. The key itself is nowhere, only its digest."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    """The public part of the key."""
    name: Mapped[str]
    role: Mapped[str]
    digest: Mapped[str]
    queues: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The queues that it is confined to; null: none."""
    labels: Mapped[JSON]
    """The labels that every task it sees has."""
    max_tasks: Mapped[int | None]
    """How many tasks that are not deleted may be of its making; null: as many as it likes."""
    tasks: Mapped[int] = mapped_column(server_default="0")
    """How many there are."""
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]

    __table_args__ = (_one_of("role", states.Role), Index("ix_keys_created", "created_at", "id"))


class AuditEntry(Base):
    """A change that a person or an app made. Never changed, but for the seal that the chore adds."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    """See `actors.Actor`."""
    actor_name: Mapped[str]
    via: Mapped[str]
    address: Mapped[str | None]
    action: Mapped[str]
    subject: Mapped[str]
    subject_id: Mapped[str]
    subject_name: Mapped[str]
    before: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))
    """What differed before, field by field."""
    after: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))
    position: Mapped[int | None] = mapped_column(BigInteger)
    """Its place in the chain, from 1 without a gap. Null until it is sealed."""
    previous: Mapped[str | None]
    hash: Mapped[str | None]

    __table_args__ = (
        _one_of("via", states.Via),
        _one_of("subject", states.Subject),
        UniqueConstraint("position"),
        Index("ix_audit_unsealed", "id", postgresql_where=text("position IS NULL")),
        Index("ix_audit_subject", "subject_id", "id"),
        Index("ix_audit_actor", "actor", "id"),
        Index("ix_audit_at", "at"),
    )


class Node(Base):
    """A beat or a worker, as it tells of itself about once a second. One that stops cleanly takes its row along."""

    __tablename__ = "nodes"

    name: Mapped[str] = mapped_column(primary_key=True)
    """The name by which it answers Celery's remote control; another at each start."""
    kind: Mapped[str]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    details: Mapped[JSON]
    """A beat's role, buckets, tick and what it set aside; a worker's queues, processes, runs and versions."""

    __table_args__ = (_one_of("kind", states.NodeKind),)


class Summary(Base):
    """What became of the runs of a minute or an hour, and how late they started. A run counts where its slot lies."""

    __tablename__ = "summaries"

    span: Mapped[str]
    start: Mapped[datetime]
    open: Mapped[bool] = mapped_column(server_default=true())
    """It may differ from the runs by now, and is to be made again: one has not ended, or may still be added."""
    made_at: Mapped[datetime | None]
    """When it was made last. Null: not since somebody opened it."""
    succeeded: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    cancelled: Mapped[int] = mapped_column(server_default="0")
    skipped: Mapped[int] = mapped_column(server_default="0")
    waiting: Mapped[int] = mapped_column(server_default="0")
    """Not ended."""
    started: Mapped[int] = mapped_column(server_default="0")
    in_time: Mapped[int] = mapped_column(server_default="0")
    """Started as promised: see `policies.GRACE`."""
    late: Mapped[int] = mapped_column(server_default="0")
    """Neither started nor ended, though that time has passed."""
    worst: Mapped[timedelta | None]
    """The greatest lateness."""
    histogram: Mapped[JSON] = mapped_column(server_default="{}")
    """How many started how late, by the buckets of `app.summaries`: histograms are added up."""
    looked_at: Mapped[datetime | None]
    """The `made_at` up to which late runs were looked for in it: see `app.incidents`."""

    __table_args__ = (
        PrimaryKeyConstraint("span", "start"),
        _one_of("span", states.Span),
        Index("ix_summaries_open", "start", postgresql_where=text("open AND span = 'minute'")),
    )


class Incident(Base):
    """That a task is not well in one way, from when until when, and what was told of it."""

    __tablename__ = "incidents"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    task_id: Mapped[UUID]
    task_name: Mapped[str]
    kind: Mapped[str]
    run_id: Mapped[UUID | None]
    """The run that opened it, and its slot; null where none did."""
    scheduled_for: Mapped[datetime | None]
    note: Mapped[str | None]
    """Why, where no run tells it."""
    count: Mapped[int]
    """How many runs or slots it is about by now, the first one included."""
    reopened: Mapped[int] = mapped_column(server_default="0")
    """How often it came back soon after it was over."""
    opened_at: Mapped[datetime]
    last_at: Mapped[datetime]
    """When the last of its runs or slots came to it."""
    last_slot: Mapped[datetime | None]
    """The latest slot of these."""
    closed_at: Mapped[datetime | None]
    ending: Mapped[str | None]
    untold: Mapped[bool] = mapped_column(server_default=true())
    """It opened or closed, and nobody has looked yet who is to be told."""
    changed_at: Mapped[datetime]
    """Since when that is so."""
    told: Mapped[str | None]
    told_by: Mapped[UUID | None]
    """The notification that told that it opened."""

    __table_args__ = (
        _one_of("kind", states.Trouble),
        _one_of("ending", states.Ending),
        _one_of("told", states.Told),
        # of a task and a kind one at most is open, however many see the trouble at once
        Index("uq_incidents_open", "task_id", "kind", unique=True, postgresql_where=text("closed_at IS NULL")),
        Index("ix_incidents_untold", "changed_at", postgresql_where=text("untold")),
        # the list, newest first, by keyset, and a task's own
        Index("ix_incidents_opened", "opened_at", "id"),
        Index("ix_incidents_task", "task_id", "kind", "opened_at"),
        Index("ix_incidents_closed", "closed_at", postgresql_where=text("closed_at IS NOT NULL")),
    )


class Duration(Base):
    """How long the runs of a task take, by the last of them: see decision 35."""

    __tablename__ = "durations"

    task_id: Mapped[UUID] = mapped_column(primary_key=True)
    target: Mapped[str]
    """Which it called then: of another one these figures say nothing."""
    seconds: Mapped[float] = mapped_column(Double)
    """Of a process that a run takes, all its attempts together."""
    runs: Mapped[int] = mapped_column(SmallInteger)
    """How many runs that was read from."""
    newest: Mapped[datetime]
    """The slot of the latest of them."""
    made_at: Mapped[datetime]
