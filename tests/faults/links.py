"""A TCP proxy per link, so that a link can be cut or made silent without privileges."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit

from sqlalchemy import make_url


class Link:
    """Carries bytes between whoever connects to `port` and a store; `cut` or `silent` for a while."""

    def __init__(self, target):
        self.target = target
        self.flowing = threading.Event()
        self.flowing.set()
        self.is_cut = False
        self.sockets = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def cut(self):
        """Every connection is closed, and every new one at once."""
        self.is_cut = True
        self._close_all()
        try:
            yield
        finally:
            self.is_cut = False

    @contextlib.contextmanager
    def silent(self):
        """Nothing comes through and nobody is told: bytes wait, connections are accepted and hang."""
        self.flowing.clear()
        try:
            yield
        finally:
            self.flowing.set()

    def close(self):
        self.listener.close()
        self.flowing.set()
        self._close_all()

    def _close_all(self):
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.sockets.clear()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
            else:
                threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client):
        self.flowing.wait()
        try:
            store = self._connect()
        except OSError:
            client.close()
            return
        self.sockets |= {client, store}
        for source, sink in ((client, store), (store, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _connect(self):
        if isinstance(self.target, str):
            store = socket.socket(socket.AF_UNIX)
            store.connect(self.target)
            return store
        return socket.create_connection(self.target, timeout=None)

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flowing.wait()
                sink.sendall(data)
        for each in (source, sink):
            self.sockets.discard(each)
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def database(url):
    """A link to PostgreSQL and the URL that leads over it."""
    given = make_url(url)
    folder = given.query.get("host")
    port = given.port or int(given.query.get("port", 5432))
    link = Link(f"{folder}/.s.PGSQL.{port}" if folder else (given.host, port))
    over = given.set(host="127.0.0.1", port=link.port, query={})
    return link, over.render_as_string(hide_password=False)


def server(url, usual_port):
    """A link to Redis or RabbitMQ and the URL that leads over it."""
    parts = urlsplit(url)
    link = Link((parts.hostname, parts.port or usual_port))
    credentials, at, _ = parts.netloc.rpartition("@")
    return link, parts._replace(netloc=f"{credentials}{at}127.0.0.1:{link.port}").geturl()
