"""gunicorn's settings: `gunicorn --config python:web.server web.main:app`. Read in the parent, before any worker."""

import os
from typing import Any

from gunicorn import glogging  # type: ignore[import-untyped]
from gunicorn.http import wsgi  # type: ignore[import-untyped]

from app import (
    logs,
    metrics,  # noqa: F401 - here, in the parent, so that its workers count in one folder
    settings,
)
from web import auth

auth.require_secrets()  # here, as gunicorn would start a worker that ends at once again and again

_config = settings.load()


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's own lines in the form of all the others."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        logs.configure()
        self.error_log.propagate = True
        self.error_log.setLevel(_config.LOG_LEVEL)


class Joined:
    """A connection on which the head of an answer waits for the first part of its body, and both go out together.

    gunicorn sends them one after the other. A proxy has passed the head on by then: of a web that is killed in between
    its client gets half an answer, and the proxy cannot ask another web any more.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.held: bytes | None = b""

    def __getattr__(self, name: str) -> Any:
        self.flush()
        return getattr(self.inner, name)

    def sendall(self, data: bytes) -> None:
        if self.held == b"":
            self.held = data
        else:
            head, self.held = self.held or b"", None
            self.inner.sendall(head + data)

    def flush(self) -> None:
        """Sends a head that no body follows."""
        head, self.held = self.held, None
        if head:
            self.inner.sendall(head)


class Response(wsgi.Response):  # type: ignore[misc]
    """gunicorn's, on such a connection."""

    def __init__(self, req: Any, sock: Any, cfg: Any) -> None:
        super().__init__(req, Joined(sock), cfg)

    def close(self) -> None:
        super().close()
        self.sock.flush()


wsgi.Response = Response  # which its workers make for each request

_host = f"[{_config.HOST}]" if ":" in _config.HOST else _config.HOST

bind = f"{_host}:{_config.PORT}"
worker_class = "gthread"
workers = 2
threads = 16  # half of them may wait for the end of a run: see web/api/runs.py
timeout = 60
graceful_timeout = 10
keepalive = 5
limit_request_line = 8190  # a query may hold a cursor of 2,000 characters
preload_app = False  # connections must not cross a fork
logger_class = Logger
accesslog = None
control_socket_disable = True  # two webs of one user would share its path
proc_name = "punctual-web"
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108 - a full disk must not stall heartbeats
