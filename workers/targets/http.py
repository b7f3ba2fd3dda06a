"""`http.request`: calls a URL. What it may reach is decided by `workers.targets.gate`."""

import base64
import codecs
import hmac
import re
import zlib
from collections.abc import Iterator, Mapping
from json import dumps
from typing import Any

import httpx

from app import clock, settings, traces
from app.broker import celery_app
from workers import excerpts
from workers.targets import gate

MAX_READ = 1024 * 1024
"""Bytes of an answer's body that are read at most, counted after it is unpacked."""

MAX_BODY = 16 * 1024
"""Characters of an answer's body that are kept."""

BODY_ROOM = 40 * 1024
"""Bytes of JSON that they may take, so that the result is not cut as a whole."""

MAX_HEADERS = 8 * 1024
"""Bytes of an answer's headers that are kept."""

TIMEOUT = 30.0
MAX_TIMEOUT = 86_400

OURS = {"idempotency-key", "webhook-id", "webhook-timestamp", "webhook-signature"}
"""Headers that say which run this is, and prove it; a task cannot set them."""

TEXT = re.compile(r"utf|iso8859|iso2022|cp125|ascii|koi8|shift_jis|euc|gb|big5")
"""Codecs that a body is decoded with; Python knows others, which are no charsets or are slow on purpose."""


class UnexpectedStatus(RuntimeError):
    """The answer's status is not one of those that were expected."""


@celery_app.task(name="http.request", bind=True, packable=False)  # type: ignore[untyped-decorator]
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
    _check(locals())
    address = gate.parse(url)
    content = _content(json, body)
    sent = prepare(self.request.id, content, headers or {}, is_json=json is not None)
    try:
        answer, text = send(gate.client(timeout), method, address, sent, content)
    except httpx.TimeoutException as exc:
        raise TimeoutError(f"{method} {url} did not end within {timeout:g} s: {exc}") from exc
    if answer.status_code not in expect if expect else not answer.is_success:
        moved = f" to {answer.headers['location']}, which is not followed" if answer.has_redirect_location else ""
        raise UnexpectedStatus(f"{method} {url} answered {answer.status_code}{moved}: {text[:500]}")
    return {"status": answer.status_code, "headers": _kept(answer.headers), "body": text}


def send(
    through: httpx.Client, method: str, address: httpx.URL, headers: httpx.Headers, content: bytes
) -> tuple[httpx.Response, str]:
    """The answer, and the start of its body. Raises what httpx does."""
    with (
        through as client,
        client.stream(method, address, headers=headers, content=content or None) as answer,
    ):
        return answer, _read(answer)


def _check(given: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError where the arguments are none that can be sent."""
    headers, expect, timeout = given["headers"], given["expect"], given["timeout"]
    if not isinstance(given["url"], str) or not isinstance(given["method"], str):
        raise TypeError("url and method must be strings.")
    if not isinstance(given["body"], str | None):
        raise TypeError("body must be a string; an object goes into json.")
    if given["json"] is not None and given["body"] is not None:
        raise ValueError("Give json or body, not both.")
    if expect is not None and not (isinstance(expect, list) and all(isinstance(status, int) for status in expect)):
        raise ValueError("expect must be an array of statuses.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
        raise ValueError(f"timeout must be a number of seconds above 0, {MAX_TIMEOUT} at most.")
    if headers is not None and not (isinstance(headers, dict) and all(isinstance(v, str) for v in headers.values())):
        raise ValueError("headers must be an object of strings.")
    taken = [name for name in headers or () if name.lower() in OURS]
    if taken:
        raise ValueError(f"headers may not set {', '.join(taken)}: Punctual sends it.")


def _content(json: object, body: str | None) -> bytes:
    """The very bytes that are sent, and signed."""
    return (body or "").encode() if json is None else encode(json)


def encode(json: object) -> bytes:
    """JSON as it is sent."""
    return dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def prepare(run: str, content: bytes, given: Mapping[str, str], *, is_json: bool) -> httpx.Headers:
    """The headers: ours, then the task's own, then those that say which run this is."""
    # an answer that comes unpacked cannot grow in our hands; one that is packed all the same is unpacked with care
    sent = httpx.Headers({"User-Agent": "Punctual", "Accept-Encoding": "identity"})
    if is_json:
        sent["Content-Type"] = "application/json"
    sent.update(given)
    traces.inject(sent)
    sent["Idempotency-Key"] = run
    keys = settings.load().webhook_keys
    if keys:
        sent.update(sign(keys, run, int(clock.now().timestamp()), content))
    return sent


def sign(keys: tuple[bytes, ...], run: str, timestamp: int, content: bytes) -> dict[str, str]:
    """The headers by which a receiver knows that a request is ours: see standardwebhooks.com."""
    signed = f"{run}.{timestamp}.".encode() + content
    signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys]
    return {
        "webhook-id": run,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _read(answer: httpx.Response) -> str:
    """The start of the body, as text; the rest of a long one is not read."""
    read = bytearray()
    for chunk in _unpacked(answer):
        read += chunk
        if len(read) >= MAX_READ:
            break
    text = bytes(read[: 4 * MAX_BODY]).decode(_charset(answer), errors="replace")
    return excerpts.start(text[:MAX_BODY], BODY_ROOM)


def _unpacked(answer: httpx.Response) -> Iterator[bytes]:
    """The body's bytes, of a packed one at most MAX_READ: a few of its bytes can stand for gigabytes.

    An encoding that is not known here, or is laid over another, is left as it is.
    """
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        yield from answer.iter_raw()
        return
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    left = MAX_READ
    for chunk in answer.iter_raw():
        try:
            unpacked = unpacker.decompress(chunk, left)
        except zlib.error as exc:
            raise httpx.DecodingError(f"The body is not {encoding}, as it says: {exc}") from exc
        yield unpacked
        left -= len(unpacked)
        if left <= 0 or unpacker.eof:
            return


def _charset(answer: httpx.Response) -> str:
    """The codec that the answer names, where it is one for text; else UTF-8."""
    try:
        name = codecs.lookup(answer.charset_encoding or "utf-8").name
    except (LookupError, ValueError):
        return "utf-8"
    return name if TEXT.match(name) else "utf-8"


def _kept(headers: httpx.Headers) -> dict[str, str]:
    """The answer's headers, as far as there is room for them."""
    kept, room = {}, MAX_HEADERS
    for name, value in headers.items():
        room -= len(dumps([name, value]))
        if room >= 0:
            kept[name] = value
    return kept
