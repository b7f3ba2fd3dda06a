"""Logging of every process: one line per event on standard output, JSON or for the eye. Secrets never reach it."""

import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import structlog

from app import settings

QUIET = (
    "amqp",
    "kombu",
    "httpx",
    "httpcore",
    "celery.redirected",
    "celery.worker.strategy",
    "celery.app.trace",
)
"""Loggers that speak of every message; what matters of a run stands in its record."""


about: ContextVar[Callable[[], Mapping[str, Any]] | None] = ContextVar("about", default=None)
"""What each line is to tell besides. It is asked when a line is logged: most runs log none."""


def configure() -> None:
    """Sends the logs of everything in this process, Celery's included, through one formatter."""
    config = settings.load()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _tell_about,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if config.LOG_FORMAT == "console"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(config.LOG_LEVEL)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _tell_about(_logger: Any, _method: str, line: dict[str, Any]) -> dict[str, Any]:
    tell = about.get()
    return line if tell is None else {**tell(), **line}
