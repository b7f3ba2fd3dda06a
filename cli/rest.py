"""The REST API as the command line speaks it: one client, its retries, its errors. Knows no command.

CliError         exit code 1   what was asked for was refused, or makes no sense
└── Unreachable  exit code 2   nobody answered
"""

import ipaddress
import os
import re
import time
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import click
import httpx

Json = dict[str, Any]

BASE = "/api/v1"
PAGE = 200
"""The most that the API gives at once."""

TRIES = 4
MAX_WAIT = 60.0
"""Seconds that are waited for a server which asks for it; one that asks for more is told of at once."""

TIMEOUT = 30.0
ANY = "*"
"""The ETag that matches whatever stands there: for a server that wants to be told one."""

KEY_NAMES = ("PUNCTUAL_KEY", "PUNCTUAL_KEY_FILE")


class CliError(click.ClickException):
    """Ends the command with one line on standard error."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"punctual: {clean(self.message)}", file=file, err=file is None)


class Unreachable(CliError):
    """Nobody answered at the address, or not to the end."""

    exit_code = 2


class Refused(CliError):
    """The API's own words on what is wrong, field by field."""

    def __init__(self, status: int, message: str, errors: Json) -> None:
        self.status = status
        self.errors = errors
        named = "; ".join(f"{field}: {sentence}" for field, sentence in sentences(errors))
        super().__init__(f"{message} {named}".strip())


def sentences(errors: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Each sentence with the field that it is about, as deep as it lies: `("schedule.expression", "…")`."""
    if isinstance(errors, Mapping):
        for name, inner in errors.items():
            yield from sentences(inner, (*path, str(name)))
    elif isinstance(errors, list):
        for inner in errors:
            yield from sentences(inner, path)
    else:
        yield ".".join(path), str(errors)


def clean(text: str) -> str:
    """The text on one line, with nothing in it that a terminal obeys."""
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join(
        ch.encode("unicode_escape").decode() if unicodedata.category(ch) in hidden else ch
        for ch in text.replace("\n", " ")
    )


def read_key(environ: Mapping[str, str]) -> str | None:
    """The API key that the environment holds or names a file of. Its text is never part of an error."""
    given, path = (environ.get(name) for name in KEY_NAMES)
    if given and path:
        raise CliError("PUNCTUAL_KEY: given twice, also as PUNCTUAL_KEY_FILE")
    if path:
        try:
            given = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise CliError(f"PUNCTUAL_KEY_FILE: cannot be read: {_reason(exc)}") from None
    key = (given or "").strip()
    if not key.isprintable():
        raise CliError("PUNCTUAL_KEY: a key is one line of plain characters")
    return key or None


def _reason(exc: Exception) -> str:
    said = (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", said)


class Api:
    """The API at one address, asked with one key."""

    def __init__(self, url: str, key: str | None) -> None:
        address = _address(url)
        self.shown = f"{address.scheme}://{address.netloc.decode()}"
        self._http = httpx.Client(
            base_url=address,
            headers={b"Authorization": f"Bearer {key}".encode()} if key else None,
            timeout=TIMEOUT,
            trust_env=not _is_here(address.host),  # a proxy cannot reach what listens on this machine alone
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, query: Json | None = None, *, timeout: float = TIMEOUT) -> Any:
        return self._json(self._send("GET", path, query=query, timeout=timeout))

    def post(
        self,
        path: str,
        body: Json | None = None,
        *,
        query: Json | None = None,
        match: str | None = None,
        is_kept: bool = True,
    ) -> Any:
        """Carries a key of its own, by which the server knows a repeat and gives the answer that it has kept."""
        headers = {"Idempotency-Key": str(uuid.uuid4()) if is_kept else None, "If-Match": match}
        return self._json(self._send("POST", path, query=query, body=body, headers=headers, again=is_kept))

    def patch(self, path: str, body: Json, *, match: str, query: Json | None = None) -> Any:
        return self._json(self._send("PATCH", path, query=query, body=body, headers={"If-Match": match}, again=False))

    def delete(self, path: str) -> None:
        self._send("DELETE", path, headers={"If-Match": ANY})

    def items(self, path: str, query: Json, *, limit: int | None = None, sized: bool = True) -> Iterator[Json]:
        """What a list holds, page by page, up to `limit`; `sized`: the list lets us say how long a page is."""
        left, after = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = self.get(path, query | ({"limit": size} if sized else {}) | {"after": after})
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise CliError(f"{self.shown}: this is no answer of Punctual's API")
            yield from page["items"][:left]
            after = page.get("next")
            if not after:
                return
            left = None if left is None else left - len(page["items"])

    def lines(self, path: str, query: Json) -> Iterator[str]:
        """The lines of an answer, as they come."""
        with self._met(), self._http.stream("GET", _path(path), params=_given(query)) as answer:
            if answer.is_error:
                answer.read()
                raise self._refusal(answer)
            yield from answer.iter_lines()

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Json | None = None,
        body: Json | None = None,
        headers: Mapping[str, str | None] | None = None,
        timeout: float = TIMEOUT,
        again: bool = True,
    ) -> httpx.Response:
        """`again`: it does no harm twice, and so is sent again also where it may have been done."""
        waits = {HTTPStatus.TOO_MANY_REQUESTS} | ({HTTPStatus.SERVICE_UNAVAILABLE} if again else set())
        named = {name: value for name, value in (headers or {}).items() if value}
        for number in range(1, TRIES + 1):
            with self._met():
                answer = self._http.request(
                    method, _path(path), params=_given(query or {}), json=body, headers=named, timeout=timeout
                )
            wait = _wait(answer, number)
            if answer.status_code not in waits or number == TRIES or wait > MAX_WAIT:
                break
            click.echo(f"punctual: {self.shown} asks to wait, again in {wait:g} s", err=True)
            time.sleep(wait)
        if answer.is_success:
            return answer
        raise self._refusal(answer)

    @contextmanager
    def _met(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError:
            raise CliError("half of a surrogate pair cannot be sent") from None
        except httpx.HTTPError as exc:
            raise Unreachable(f"{self.shown} cannot be reached: {_reason(exc)}") from None

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise CliError(f"{self.shown}: this is no answer of Punctual's API") from None

    def _refusal(self, answer: httpx.Response) -> CliError:
        try:
            said = answer.json()
            return Refused(answer.status_code, str(said["message"]), said.get("errors") or {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return CliError(f"{self.shown}: status {answer.status_code}, and no answer of Punctual's API")


def segment(text: str) -> str:
    """One part of a path, whatever it holds."""
    return quote(text, safe="")


def _path(path: str) -> str:
    return BASE + path


def _given(query: Json) -> Json:
    return {name: value for name, value in query.items() if value not in (None, "")}


def _address(url: str) -> httpx.URL:
    """The server's address; the API's own, which `script/server` writes down, means the same."""
    try:
        address = httpx.URL(url.strip().rstrip("/").removesuffix(BASE))
    except httpx.InvalidURL:
        address = httpx.URL("")
    if address.scheme not in {"http", "https"} or not address.host or address.userinfo:
        raise click.BadParameter("The address is http:// or https://, a host and perhaps a port.", param_hint="--url")
    return address


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wait(answer: httpx.Response, number: int) -> float:
    """Seconds that the server asks us to wait; where it names none, more with each try."""
    asked = answer.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else float(2 ** (number - 1))


def connect(url: str) -> Api:
    """The API at this address, with the key of this process's environment."""
    return Api(url, read_key(os.environ))
