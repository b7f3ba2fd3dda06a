"""The words of the contract: what a task, a run and a target look like to a client. REST and Celery calls share them.

Loading a task gives the `fields` that the use cases of `app.tasks` take; dumping takes rows.
"""

from app.schemas.forms import Schema, fold, load
from app.schemas.runs import IncidentSchema, RunDetailSchema, RunSchema, current, lateness
from app.schemas.targets import TargetSchema
from app.schemas.tasks import (
    QUEUE,
    QUEUE_SAYS,
    VISIBLE,
    VISIBLE_SAYS,
    BackfillSchema,
    PauseSchema,
    ResumeSchema,
    RunNowSchema,
    TaskChangeSchema,
    TaskDetailSchema,
    TaskSchema,
)

__all__ = [
    "QUEUE",
    "QUEUE_SAYS",
    "VISIBLE",
    "VISIBLE_SAYS",
    "BackfillSchema",
    "IncidentSchema",
    "PauseSchema",
    "ResumeSchema",
    "RunDetailSchema",
    "RunNowSchema",
    "RunSchema",
    "Schema",
    "TargetSchema",
    "TaskChangeSchema",
    "TaskDetailSchema",
    "TaskSchema",
    "current",
    "fold",
    "lateness",
    "load",
]
