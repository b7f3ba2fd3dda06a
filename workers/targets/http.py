"""`http.request`: calls a URL. What it may reach is decided by the address that it connects to."""

import functools
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from app import settings
from app.broker import celery_app

MAX_READ = 1024 * 1024
"""Bytes of an answer that are read at most."""

MAX_BODY = 16 * 1024
"""Characters of an answer's body that are kept."""

TIMEOUT = 30.0

EMBEDDING = [
    ipaddress.ip_network(network)
    for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
]
"""IPv6 networks whose addresses stand for IPv4 ones, which a translator on the way may make private."""


class AddressRefused(ValueError):
    """The URL leads to an address that `PUNCTUAL_HTTP_ALLOW_PRIVATE` keeps closed."""


class UnexpectedStatus(RuntimeError):
    """The answer's status is not one of those that were expected."""


class _Guard(httpcore.SyncBackend):
    """Resolves a name once, checks every address of it, and connects to that very address.

    A second look-up could give another answer than the one that was checked.
    """

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {exc}") from exc
        addresses = [str(info[4][0]) for info in found]
        if not settings.load().PUNCTUAL_HTTP_ALLOW_PRIVATE:
            for address in addresses:
                check(address)
        return super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def check(address: str) -> None:
    """Raises AddressRefused where the address is not one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if not ip.is_global or ip.is_multicast or any(ip in network for network in EMBEDDING):
        raise AddressRefused(f"{address} is not a public address (see PUNCTUAL_HTTP_ALLOW_PRIVATE).")


@celery_app.task(name="http.request", bind=True)  # type: ignore[untyped-decorator]
def request(
    self: Any,
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    json: Any = None,
    body: str | None = None,
    expect: list[int] | None = None,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """Calls a URL; fails where its status is not expected: one of `expect`, or any 2xx."""
    sent = {"Idempotency-Key": self.request.id, "User-Agent": "Punctual"} | (headers or {})
    content = {"json": json} if json is not None else {"content": body}
    with _client(timeout) as client, client.stream(method, url, headers=sent, **content) as answer:
        text = _read(answer)
    if answer.status_code not in expect if expect else not answer.is_success:
        raise UnexpectedStatus(f"{method} {url} answered {answer.status_code}: {text[:500]}")
    return {"status": answer.status_code, "headers": dict(answer.headers), "body": text}


def _client(timeout: float) -> httpx.Client:
    transport = httpx.HTTPTransport(verify=_ssl_context(), trust_env=False)
    # httpx has no setting for the backend that opens its connections
    transport._pool = httpcore.ConnectionPool(  # noqa: SLF001
        ssl_context=_ssl_context(), network_backend=_Guard()
    )
    return httpx.Client(transport=transport, timeout=timeout, follow_redirects=False, trust_env=False)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once in a process: reading the authorities' certificates costs 20 ms of processor."""
    return httpx.create_ssl_context(trust_env=False)


def _read(answer: httpx.Response) -> str:
    """The start of the body, as text; the rest of a long one is not read."""
    chunks, size = [], 0
    for chunk in answer.iter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_READ:
            break
    return b"".join(chunks).decode(answer.charset_encoding or "utf-8", errors="replace")[:MAX_BODY]
