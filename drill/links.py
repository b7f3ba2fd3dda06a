"""A TCP proxy per link, so that a link can be cut, slowed or made silent without privileges."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import urlsplit

from sqlalchemy import make_url

Target = str | tuple[str, int]
"""A socket's path, or a host and a port."""

CHUNK = 65536
USUAL_PORTS = {"redis": 6379, "amqp": 5672}


class Link:
    """Carries bytes between whoever connects to `port` and a store; cut, silent or slow for a while."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.delay = 0.0
        """Seconds that each chunk waits, in either direction."""
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._is_cut = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Every connection is closed, and every new one at once."""
        self._cut()
        try:
            yield
        finally:
            self._is_cut = False

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing comes through and nobody is told: bytes wait, connections are accepted and hang."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    @contextmanager
    def slow(self, seconds: float = 0.5) -> Iterator[None]:
        """Everything comes through, late."""
        self.delay = seconds
        try:
            yield
        finally:
            self.delay = 0.0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._cut()
        self._flowing.set()

    def _cut(self) -> None:
        with self._lock:  # a connection that is being joined is either closed here, or finds the link cut
            self._is_cut = True
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            _close(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
            else:
                threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        self._flowing.wait()
        try:
            store = self._connect()
        except OSError:
            client.close()
            return
        with self._lock:
            if self._is_cut:
                _close(client)
                _close(store)
                return
            self._sockets |= {client, store}
        for source, sink in ((client, store), (store, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self.target, str):
            store = socket.socket(socket.AF_UNIX)
            try:
                store.connect(self.target)
            except OSError:
                store.close()
                raise
            return store
        store = socket.create_connection(self.target, timeout=None)
        store.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return store

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._flowing.wait()
                if self.delay:
                    time.sleep(self.delay)
                sink.sendall(data)
        with self._lock:
            self._sockets -= {source, sink}
        for each in (source, sink):
            _close(each)


MODES: dict[str, Callable[[Link], AbstractContextManager[None]]] = {
    "cut": Link.cut,
    "silent": Link.silent,
    "slow": Link.slow,
}


def database(url: str) -> tuple[Link, str]:
    """A link to PostgreSQL, and the URL that leads over it."""
    given = make_url(url)
    folder = given.query.get("host")
    port = given.port or int(str(given.query.get("port", 5432)))
    link = Link(f"{folder}/.s.PGSQL.{port}" if folder else (given.host or "127.0.0.1", port))
    over = given.set(host="127.0.0.1", port=link.port, query={})
    return link, over.render_as_string(hide_password=False)


def server(url: str) -> tuple[Link, str]:
    """A link to Redis or RabbitMQ, and the URL that leads over it."""
    parts = urlsplit(url)
    link = Link((parts.hostname or "127.0.0.1", parts.port or USUAL_PORTS[parts.scheme]))
    credentials, at, _ = parts.netloc.rpartition("@")
    return link, parts._replace(netloc=f"{credentials}{at}127.0.0.1:{link.port}").geturl()


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
