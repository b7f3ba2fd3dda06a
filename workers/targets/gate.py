"""The way out: connections to checked addresses only, all of a request within one deadline.

A name is resolved once, every answer is checked, and the connection goes to that very address: a second look-up
could give another answer than the one that was checked.
"""

import ipaddress
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import httpcore
import httpx

from app import settings

REFUSED = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # special purposes
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # the metadata of one large cloud, at an address that looks public
        # of 2000::/3, the only IPv6 addresses of the public internet:
        "2001::/23",  # special purposes, Teredo among them, whose addresses stand for IPv4 ones
        "2001:db8::/32",
        "2002::/16",  # 6to4, whose addresses stand for IPv4 ones
        "3fff::/20",
    )
]
PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""Outside are NAT64 and the mapped and compatible forms, which stand for IPv4 addresses, perhaps private ones."""

# its log shows whole URLs, and with them what is secret in their queries
logging.getLogger("httpx").setLevel(logging.WARNING)

MAX_PORT = 65_535

Found = tuple[socket.AddressFamily, tuple[Any, ...]]
"""An address as the system's resolver gave it: it is connected to in this form."""


class UrlRefused(ValueError):
    """The URL is none that is called."""


class AddressRefused(UrlRefused):
    """The URL leads to an address that `PUNCTUAL_HTTP_ALLOW_PRIVATE` keeps closed."""


def parse(url: str) -> httpx.URL:
    """Raises UrlRefused where a URL is not one of http or https with a host, or holds credentials."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, UnicodeError) as exc:
        raise UrlRefused(f"url cannot be read: {exc}") from exc
    if parsed.scheme not in {"http", "https"}:
        raise UrlRefused("url must begin with http:// or https://.")
    port = 80 if parsed.port is None else parsed.port
    if not parsed.host or "%" in parsed.host or not 1 <= port <= MAX_PORT:
        raise UrlRefused("url must name a host, without %, and a port from 1 to 65535 where it names one.")
    if parsed.userinfo:
        raise UrlRefused("url may not hold credentials: give them as the header Authorization.")
    return parsed


def check(address: str) -> None:
    """Raises AddressRefused where the address is not one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    is_public = ip.is_global and not ip.is_multicast and (ip.version == 4 or ip in PUBLIC_IPV6)  # noqa: PLR2004
    if not is_public or any(ip in network for network in REFUSED):
        raise AddressRefused(f"{address} is not a public address (see PUNCTUAL_HTTP_ALLOW_PRIVATE).")


def client(timeout: float, *, is_open: bool = False) -> httpx.Client:
    """A client that follows no redirect, knows no proxy, and is through after so many seconds from now.

    `is_open` is for an address that an operator gave, which may be any.
    """
    transport = httpx.HTTPTransport(verify=_ssl_context(), trust_env=False)
    deadline = time.monotonic() + timeout
    # httpx has no setting for the backend that opens its connections
    transport._pool = httpcore.ConnectionPool(  # noqa: SLF001
        ssl_context=_ssl_context(), network_backend=_Backend(deadline, is_open=is_open)
    )
    return httpx.Client(transport=transport, timeout=None, follow_redirects=False, trust_env=False)  # noqa: S113


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


class _Backend(httpcore.NetworkBackend):
    """Opens a request's connections. The time limits that it is given for a single step stand back."""

    def __init__(self, deadline: float, *, is_open: bool) -> None:
        self.deadline = deadline
        self.is_open = is_open

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        found = resolve(host, port, self.deadline)
        if not (self.is_open or settings.load().PUNCTUAL_HTTP_ALLOW_PRIVATE):
            for _, address in found:
                check(address[0])
        return _Stream(_connect(host, found, self.deadline), self.deadline)


def resolve(host: str, port: int, deadline: float) -> list[Found]:
    """The addresses of a host. Raises ConnectError, or ConnectTimeout at the deadline.

    The system's look-up knows no time limit, so a thread waits for it, and is left behind where it does not answer.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError, OverflowError) as exc:
            answers.put(exc)

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except (queue.Empty, TimeoutError):
        raise httpcore.ConnectTimeout(f"the look-up of {host} took too long") from None
    if isinstance(answer, Exception):
        raise httpcore.ConnectError(f"{host} cannot be resolved: {answer}") from answer
    return [(family, address) for family, _, _, _, address in answer]


def _connect(host: str, found: list[Found], deadline: float) -> socket.socket:
    """A connection to the first address that takes it; each has its share of the time that is left."""
    problems = []
    for index, (family, address) in enumerate(found):
        try:
            return _open(family, address, _left(deadline) / (len(found) - index))
        except OSError as exc:
            problems.append(f"{address[0]} port {address[1]}: {exc}")
    error = httpcore.ConnectTimeout if time.monotonic() >= deadline else httpcore.ConnectError
    raise error(f"{host} cannot be connected to: {'; '.join(problems) or 'it has no address'}")


def _open(family: socket.AddressFamily, address: tuple[Any, ...], limit: float) -> socket.socket:
    """Raises OSError where it does not connect, AddressRefused where the other end is not the one that was checked."""
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(limit)
        connection.connect(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _check_peer(connection.getpeername()[0], address[0])
    except BaseException:
        connection.close()
        raise
    return connection


def _check_peer(peer: str, address: str) -> None:
    if ipaddress.ip_address(peer) != ipaddress.ip_address(address):
        raise AddressRefused(f"{peer} answers in place of {address}.")


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends at the deadline, so that a server which drips bytes wins no time."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        try:
            self.connection.settimeout(_left(self.deadline))
            return self.connection.recv(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout("the answer took too long") from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        left = memoryview(buffer)
        try:
            while left:
                self.connection.settimeout(_left(self.deadline))
                left = left[self.connection.send(left) :]
        except TimeoutError as exc:
            raise httpcore.WriteTimeout("the request was taken too slowly") from exc
        except OSError as exc:
            raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self.connection.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        try:
            self.connection.settimeout(_left(self.deadline))
            return _Stream(ssl_context.wrap_socket(self.connection, server_hostname=server_hostname), self.deadline)
        except TimeoutError as exc:
            self.close()
            raise httpcore.ConnectTimeout("the TLS handshake took too long") from exc
        except (OSError, ValueError) as exc:
            self.close()
            raise httpcore.ConnectError(str(exc)) from exc

    def get_extra_info(self, info: str) -> Any:
        return self.connection if info == "socket" else None


def _left(deadline: float) -> float:
    """Seconds that are left; raises TimeoutError where none are. A time limit of 0 would mean not to wait at all."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left
