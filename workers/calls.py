"""What other apps may call: tasks and runs as REST has them, over Celery, on the queue `punctual`.

These are ordinary Celery calls: no run records them, and no task can have them as its target. What they return goes
to the caller's `rpc://` backend. What they raise is made of Python's own exceptions, as the caller has none of ours.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import marshmallow as ma
from celery import Task
from celery.exceptions import Reject
from sqlalchemy.orm import Session

from app import answers, db, errors, external, messages, queries, schemas, tasks
from app.actors import Actor
from app.broker import celery_app
from app.fields import Text
from app.messages import Ticket
from app.states import Role, Via
from workers.execution import cut

Fields = dict[str, Any]
Answer = TypeVar("Answer")
UseCase = Callable[[Session, datetime, Fields], Fields]

PATIENCE = timedelta(seconds=60)
"""How long a call waits for PostgreSQL before its message is given back to the broker, to come again."""

RAISED: dict[type[errors.PunctualError], type[Exception]] = {
    errors.Malformed: TypeError,
    errors.Invalid: ValueError,
    errors.NotFound: LookupError,
    errors.Conflict: RuntimeError,
}
"""What the caller gets for our errors: what every Python has."""

log = logging.getLogger(__name__)


class KeySchema(schemas.Schema):
    """What makes a repeated call do nothing."""

    idempotency_key = Text(1, 255, allow_none=True, load_default=None)


class RunKeySchema(schemas.Schema):
    """Which run."""

    run = ma.fields.UUID(required=True, error_messages={"invalid_uuid": "Must be a run's id, a UUID."})


class TaskKeySchema(schemas.Schema):
    """Which task."""

    task = Text(1, 200, required=True, metadata={"description": "Its id or its name."})


class Call(Task):  # type: ignore[misc]
    """The class of every call. It answers for itself, whatever is set for targets."""

    Request = "workers.masking:MaskedRequest"
    ignore_result = False
    throws = tuple(RAISED.values())
    """The caller is told; to us it is no failure."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return _insist(lambda: self.run(*args, **kwargs))
        except errors.Unavailable as exc:
            raise Reject(exc, requeue=True) from exc  # a caller may not wait for an answer, so this one may not be lost
        except errors.PunctualError as exc:
            raise RAISED.get(type(exc), RuntimeError)(in_words(exc)) from None
        except Exception:
            log.exception("%s failed, its caller is told no more than that", self.name)
            raise RuntimeError(errors.PunctualError().message) from None


def changes(use_case: UseCase) -> Any:
    """Makes a use case a call that changes something: a repeat under the same key does nothing and answers the same.

    A call without a key has its message's id for one, so that a message that is delivered again changes nothing.
    """

    def run(self: Task, /, *args: Any, **given: Any) -> Fields:
        fields = _plain(args, given)
        key = schemas.load(KeySchema(), {name: fields.pop(name) for name in ("idempotency_key",) if name in fields})
        request = answers.Request(route=self.name, key=key["idempotency_key"] or self.request.id, given=fields)
        with db.transaction(by=_caller(self)) as session:
            now = db.now(session)
            answer: Fields = answers.once(
                session, now, request, lambda: use_case(session, now, dict(fields)), wait=True
            )
        return answer

    return _register(use_case, run)


def reads(use_case: Callable[[Session, Fields], Fields]) -> Any:
    """Makes a use case a call that changes nothing."""

    def run(_self: Task, /, *args: Any, **given: Any) -> Fields:
        with db.transaction() as session:
            return use_case(session, _plain(args, given))

    return _register(use_case, run)


def _register(use_case: Callable[..., Any], run: Callable[..., Any]) -> Any:
    """Registers `run` as the call that has the use case's name and documentation."""
    run.__name__, run.__doc__ = use_case.__name__, use_case.__doc__
    return celery_app.task(name=f"punctual.{use_case.__name__}", base=Call, bind=True)(run)


@changes
def create_task(session: Session, now: datetime, fields: Fields) -> Fields:
    """Registers a task."""
    return _dump_task(tasks.create(session, now, schemas.load(schemas.TaskSchema(), fields)))


@changes
def change_task(session: Session, now: datetime, fields: Fields) -> Fields:
    """Changes what is given of a task."""
    task_id = _take_task(session, fields)
    return _dump_task(tasks.change(session, now, task_id, schemas.load(schemas.TaskChangeSchema(), fields)))


@changes
def pause_task(session: Session, now: datetime, fields: Fields) -> Fields:
    """Fires no slot of a task until it is resumed; `note` says why."""
    task_id = _take_task(session, fields)
    return _dump_task(tasks.pause(session, now, task_id, schemas.load(schemas.PauseSchema(), fields)["note"]))


@changes
def resume_task(session: Session, now: datetime, fields: Fields) -> Fields:
    """Fires the slots of a paused task again, from `now` or from the `last` one."""
    task_id = _take_task(session, fields)
    return _dump_task(tasks.resume(session, now, task_id, schemas.load(schemas.ResumeSchema(), fields)["since"]))


@changes
def delete_task(session: Session, now: datetime, fields: Fields) -> Fields:
    """Deletes a task and keeps its runs."""
    task_id = _take_task(session, fields)
    schemas.load(schemas.Schema(), fields)  # nothing else may be given
    return _dump_task(tasks.delete(session, now, task_id))


@changes
def run_task(session: Session, now: datetime, fields: Fields) -> Fields:
    """Runs a task now, with its own arguments or with these `args` and `kwargs`."""
    task_id = _take_task(session, fields)
    given = schemas.load(schemas.RunNowSchema(), fields)
    new = tasks.run(session, now, task_id, given["args"], given["kwargs"])
    return dict(schemas.RunSchema().dump(new))


@reads
def get_task(session: Session, fields: Fields) -> Fields:
    """Shows a task, and whether its target can be called."""
    task_id = _take_task(session, fields)
    schemas.load(schemas.Schema(), fields)
    return dict(schemas.TaskDetailSchema().dump(queries.task_detail(session, task_id)))


@reads
def get_run(session: Session, fields: Fields) -> Fields:
    """Shows a run with its attempts."""
    run_id = schemas.load(RunKeySchema(), fields)["run"]
    return dict(schemas.RunDetailSchema().dump(queries.run(session, run_id)))


@celery_app.task(name=messages.RECORD_SUCCESS, base=Call, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
def record_success(self: Task, result: Any, *, ticket: Any) -> None:
    """What another app's worker calls when a run of its target has succeeded: Celery's `link`."""
    answered = Ticket.decode(ticket)
    stored = None if result is None else cut(result)
    with db.transaction() as session:
        if not external.succeed(session, answered, stored, self.request.origin):
            _refuse(answered)


@celery_app.task(name=messages.RECORD_FAILURE, base=Call, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
def record_failure(self: Task, _message_id: str, *, ticket: Any) -> None:
    """What another app's worker calls when a run of its target has failed: Celery's `link_error`."""
    answered = Ticket.decode(ticket)
    draw = random.random()  # noqa: S311 - spreads retries, guards nothing
    with db.transaction() as session:
        if external.fail(session, answered, self.request.origin, draw) is None:
            _refuse(answered)


def in_words(exc: errors.PunctualError) -> str:
    """An error as one line: the sentence, then field by field what is wrong."""
    return " ".join([exc.message, "; ".join(f"{path}: {sentence}" for path, sentence in _flat(exc.errors))]).strip()


def _flat(found: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Sentences with the dotted path of their field."""
    if isinstance(found, dict):
        for field, inner in found.items():
            yield from _flat(inner, f"{path}.{field}" if path else str(field))
    else:
        yield path, " ".join(found)


def _plain(args: Any, given: Fields) -> Fields:
    """What was given, as REST would have it. Raises Malformed where it is not by name, or no JSON."""
    if args:
        raise errors.Malformed("Everything is given by name: send kwargs, and no args.")
    try:
        # Celery brings times and UUIDs through JSON as what they were
        return dict(json.loads(json.dumps(given, default=_as_text)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise errors.Malformed("What is given must be JSON.") from exc


def _as_text(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)


def _take_task(session: Session, fields: Fields) -> UUID:
    """Takes `task` out of the fields: the id of the task that it names."""
    key = schemas.load(TaskKeySchema(), {name: fields.pop(name) for name in ("task",) if name in fields})
    return queries.task_id(session, key["task"])


def _dump_task(task: Any) -> Fields:
    return dict(schemas.TaskSchema().dump(task))


def _caller(call: Task) -> Actor:
    """Who called, as the message says: what may send here is settled by the broker's permissions."""
    return Actor(id=str(Via.CELERY), name=str(call.request.origin or ""), role=Role.EDITOR, via=Via.CELERY)


def _refuse(ticket: Ticket) -> None:
    log.warning("an answer for run %s is refused: attempt %d waits for none", ticket.run, ticket.attempt)


def _insist(step: Callable[[], Answer]) -> Answer:
    """Does a step again and again while PostgreSQL is away. Raises Unavailable when PATIENCE is at its end.

    What was committed but not heard of is answered from what was kept.
    """
    end = time.monotonic() + PATIENCE.total_seconds()
    pause = 0.05
    while True:
        try:
            return step()
        except errors.Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(pause)
            pause = min(1.0, pause * 2)
