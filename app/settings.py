"""The only reader of the environment. Each setting stands in CONTRACT's table or in docs/settings.md.

Every setting may also be given as `NAME_FILE`, the path of a file that holds it. An unusable value, and a
`PUNCTUAL_` name that does not exist, end the process at start with one clear line: see `load`.
"""

import base64
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from app.states import Trouble

DATABASE_SCHEMES = ("postgresql+psycopg://",)
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis-sentinel://")
BROKER_SCHEMES = ("amqp://", "amqps://", "redis://", "rediss://", "redis+socket://")
EXTERNAL_TARGET = re.compile(
    r"(?!celery\.|punctual\.)[A-Za-z0-9_][A-Za-z0-9_.*?\-]*@(?!amq\.|default$|punctual)[A-Za-z0-9_.\-]{1,64}"
)
"""A name pattern with * and ?, an @, and the queue of the other app; neither is one of ours."""

FAIL_POINT = re.compile(
    r"(?P<point>fired|published|confirmed|claimed|called|recorded):(?P<nth>[1-9]\d*):(kill|pause=(?P<pause>\d+(\.\d+)?))"
)
"""`claimed:3:kill`, `confirmed:1:pause=15`: see `app.failpoints`."""

ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?")

WEBHOOK_KEY = range(24, 65)
"""Bytes of a key that signs, as standardwebhooks.com asks for."""

PAGE = re.compile(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?(/[A-Za-z0-9_.~/\-]*)?")

ADDRESS = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9\-.]{0,251}[A-Za-z0-9])?", re.ASCII
)
"""An address of mail, as an HTML form has it."""

SMTP_PORTS = {"smtp": 25, "smtps": 465, "smtp+starttls": 587}


CLIENT = frozenset({"PUNCTUAL_URL", "PUNCTUAL_KEY"})
"""What the command line reads: a shell that exports it may start processes too."""


class Settings(BaseModel):
    """What the environment says, checked. Addresses hold passwords, so they are secrets too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    DATABASE_URL: SecretStr
    DATABASE_READ_URL: SecretStr | None = None
    REDIS_URL: SecretStr
    BROKER_URL: SecretStr

    HOST: str = "127.0.0.1"
    PORT: Annotated[int, Field(ge=0, le=65535)] = 8000
    FLOWER_PORT: Annotated[int, Field(ge=0, le=65535)] = 5555

    SECRET_KEY: SecretStr | None = None
    SECRET_KEY_SECOND: SecretStr | None = None
    PUNCTUAL_ADMIN_KEY: SecretStr | None = None
    PUNCTUAL_ADMIN_KEY_SECOND: SecretStr | None = None

    PUNCTUAL_BUCKETS: Annotated[int, Field(ge=1, le=4096)] = 16
    PUNCTUAL_TASK_MODULES: tuple[str, ...] = ()
    PUNCTUAL_EXTERNAL_TARGETS: tuple[tuple[str, str], ...] = ()
    PUNCTUAL_SHELL: bool = False
    PUNCTUAL_HTTP_ALLOW_PRIVATE: bool = False
    PUNCTUAL_WEBHOOK_SECRET: SecretStr | None = None
    PUNCTUAL_NOTIFY_WEBHOOK: SecretStr | None = None
    PUNCTUAL_NOTIFY_EMAIL: tuple[str, ...] = ()
    PUNCTUAL_NOTIFY_ON: tuple[Trouble, ...] = tuple(Trouble)
    PUNCTUAL_SMTP_URL: SecretStr | None = None
    PUNCTUAL_MAIL_FROM: str = ""
    PUNCTUAL_PAGE_URL: str = ""
    PUNCTUAL_HEALTH_PATH: Path | None = None
    PUNCTUAL_METRICS_PORT: Annotated[int, Field(ge=0, le=65526)] = 0
    PUNCTUAL_MAX_BODY: Annotated[int, Field(ge=1024)] = 64 * 1024
    PUNCTUAL_RATE_PER_KEY: Annotated[int, Field(ge=0)] = 6_000
    PUNCTUAL_RATE_PER_ADDRESS: Annotated[int, Field(ge=0)] = 12_000
    PUNCTUAL_RATE_WRONG_KEYS: Annotated[int, Field(ge=0)] = 60
    PUNCTUAL_REQUIRE_IF_MATCH: bool = False
    PUNCTUAL_TRUSTED_PROXIES: Annotated[int, Field(ge=0, le=10)] = 0
    PUNCTUAL_CORS_ORIGINS: tuple[str, ...] = ()
    PUNCTUAL_PACKS: bool = True
    PUNCTUAL_FAIL_POINT: str = ""
    PUNCTUAL_AUTOSCALE_CPU: Annotated[int, Field(ge=1, le=100)] = 90
    PUNCTUAL_AUTOSCALE_MEMORY: Annotated[int, Field(ge=1, le=100)] = 90
    PUNCTUAL_AUTOSCALE_QUIET: Annotated[float, Field(gt=0)] = 30.0
    PUNCTUAL_STOP_GRACE: Annotated[float, Field(ge=0)] = 25.0
    PUNCTUAL_KEEP_RUNS_DAYS: Annotated[int, Field(ge=0, le=36_500)] = 400
    PUNCTUAL_KEEP_RUNS_PER_TASK: Annotated[int, Field(ge=0, le=10_000)] = 0
    PUNCTUAL_ARCHIVE_PATH: Path | None = None

    OTEL_EXPORTER_OTLP_ENDPOINT: str | None = None
    OTEL_TRACES_SAMPLER_ARG: Annotated[float, Field(ge=0, le=1)] = 1.0

    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    LOG_FORMAT: Literal["json", "console"] = "json"

    @field_validator(
        "PUNCTUAL_TASK_MODULES", "PUNCTUAL_CORS_ORIGINS", "PUNCTUAL_NOTIFY_EMAIL", "PUNCTUAL_NOTIFY_ON", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("PUNCTUAL_CORS_ORIGINS")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin such as https://ops.example.com")
        return value

    @field_validator("DATABASE_URL", "DATABASE_READ_URL", "REDIS_URL", "BROKER_URL")
    @classmethod
    def _scheme(cls, value: SecretStr | None, info: Any) -> SecretStr | None:
        allowed = {"REDIS_URL": REDIS_SCHEMES, "BROKER_URL": BROKER_SCHEMES}.get(info.field_name, DATABASE_SCHEMES)
        if value is not None and not all(url.startswith(allowed) for url in value.get_secret_value().split(";")):
            raise ValueError(f"must start with {' or '.join(allowed)}")
        return value

    @field_validator("OTEL_EXPORTER_OTLP_ENDPOINT")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must be an address that takes OTLP over HTTP, such as http://collector:4318")
        return value

    @field_validator("PUNCTUAL_EXTERNAL_TARGETS", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """Name patterns with their queues, in the order in which they are tried."""
        if not isinstance(value, str):
            return value
        given = [pair.strip() for pair in value.split(",") if pair.strip()]
        for pair in given:
            if not EXTERNAL_TARGET.fullmatch(pair):
                raise ValueError(
                    f"{pair!r} is not a name pattern @ queue such as billing.*@billing, neither of them one of ours"
                )
        return tuple((name, queue) for name, _, queue in (pair.partition("@") for pair in given))

    @field_validator("PUNCTUAL_WEBHOOK_SECRET")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _keys(value)
        return value

    @field_validator("PUNCTUAL_NOTIFY_WEBHOOK")
    @classmethod
    def _webhook(cls, value: SecretStr | None) -> SecretStr | None:
        parts = urlsplit(value.get_secret_value()) if value else None
        if parts and not (parts.scheme in {"http", "https"} and parts.hostname and not parts.username):
            raise ValueError("must be an address that begins with http:// or https://, without a password")
        return value

    @field_validator("PUNCTUAL_NOTIFY_EMAIL", "PUNCTUAL_MAIL_FROM")
    @classmethod
    def _addresses(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        for address in (value,) if isinstance(value, str) else value:
            if address and not ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is no address such as ops@example.com")
        return value

    @field_validator("PUNCTUAL_SMTP_URL")
    @classmethod
    def _smtp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            mail_server(value)
        return value

    @field_validator("PUNCTUAL_PAGE_URL")
    @classmethod
    def _page(cls, value: str) -> str:
        if value and not PAGE.fullmatch(value):
            raise ValueError("must be the address of the pages, such as https://punctual.example.com")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _mails(self) -> Self:
        if self.PUNCTUAL_NOTIFY_EMAIL and self.PUNCTUAL_SMTP_URL is None:
            raise ValueError("PUNCTUAL_NOTIFY_EMAIL: needs PUNCTUAL_SMTP_URL, which says by which server mails go")
        if self.PUNCTUAL_SMTP_URL is not None and not self.PUNCTUAL_MAIL_FROM:
            raise ValueError("PUNCTUAL_SMTP_URL: needs PUNCTUAL_MAIL_FROM, the address that mails come from")
        return self

    @model_validator(mode="after")
    def _fail_point(self) -> Self:
        if not self.PUNCTUAL_FAIL_POINT:
            return self
        if not FAIL_POINT.fullmatch(self.PUNCTUAL_FAIL_POINT):
            raise ValueError("PUNCTUAL_FAIL_POINT: must be POINT:NTH:kill or POINT:NTH:pause=SECONDS")
        database = urlsplit(self.DATABASE_URL.get_secret_value()).path
        if not ("drill" in database or "test" in database):
            raise ValueError("PUNCTUAL_FAIL_POINT: is for a database whose name says that it is a drill's or a test's")
        return self

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """What sessions are signed with: the first signs, each is believed while one takes the place of another."""
        return _values(self.SECRET_KEY, self.SECRET_KEY_SECOND)

    @property
    def admin_keys(self) -> tuple[str, ...]:
        """The administrator's keys: two while one takes the place of another."""
        return _values(self.PUNCTUAL_ADMIN_KEY, self.PUNCTUAL_ADMIN_KEY_SECOND)

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """The keys that requests are signed with: several while one takes the place of another."""
        return _keys(self.PUNCTUAL_WEBHOOK_SECRET) if self.PUNCTUAL_WEBHOOK_SECRET else ()

    @property
    def external_queues(self) -> frozenset[str]:
        """The queues of other apps: theirs to declare and to consume."""
        return frozenset(queue for _, queue in self.PUNCTUAL_EXTERNAL_TARGETS)

    def external_queue(self, target: str) -> str | None:
        """The queue of the other app that a target belongs to; None where it is one of ours."""
        found = (queue for name, queue in self.PUNCTUAL_EXTERNAL_TARGETS if fnmatchcase(target, name))
        return next(found, None)

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """The settings that `environ` holds. Raises ValueError with one line that names the setting."""
        unknown = [name for name in environ if name.startswith("PUNCTUAL_") and not _known(name)]
        if unknown:
            raise ValueError(f"{unknown[0]}: there is no such setting")
        values = {name: text(name, environ) for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in values.items() if value is not None})
        except ValidationError as exc:
            raise ValueError(_one_line(exc)) from None  # the chain would print the value, perhaps a secret


@dataclass(frozen=True, kw_only=True)
class MailServer:
    """Where mails are handed over."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str = field(default="", repr=False)


def mail_server(url: SecretStr) -> MailServer:
    """What `PUNCTUAL_SMTP_URL` says. Raises ValueError, which does not show it."""
    says = (
        "must be smtp://host, smtps://user:password@host or smtp+starttls://user:password@host, with or without :port"
    )
    try:
        parts = urlsplit(url.get_secret_value())
        port = parts.port or SMTP_PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise ValueError(says) from None
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(says)
    if parts.username and parts.scheme == "smtp":
        raise ValueError(
            "a password goes over smtps:// or smtp+starttls:// alone: smtp:// would show it to the network"
        )
    return MailServer(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password or ""),
    )


def _keys(secret: SecretStr) -> tuple[bytes, ...]:
    """The keys in `whsec_…` secrets, as standardwebhooks.com describes them. Raises ValueError, which shows none."""
    keys = []
    for text in secret.get_secret_value().replace(",", " ").split():
        prefix, _, encoded = text.rpartition("_")
        try:
            keys.append(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
        except ValueError:
            keys.append(b"")
        if prefix != "whsec" or len(keys[-1]) not in WEBHOOK_KEY:
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64, or several such, separated by spaces")
    return tuple(keys)


def _values(*given: SecretStr | None) -> tuple[str, ...]:
    return tuple(secret.get_secret_value() for secret in given if secret is not None)


def _known(name: str) -> bool:
    return name.removesuffix("_FILE") in Settings.model_fields.keys() | CLIENT


def text(name: str, environ: Mapping[str, str]) -> str | None:
    """A setting's text; an empty one counts as not given, as compose files pass unset ones on empty."""
    path = environ.get(f"{name}_FILE")
    if not path:
        return environ.get(name) or None
    if environ.get(name):
        raise ValueError(f"{name}: given twice, also as {name}_FILE")
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{name}_FILE: cannot be read: {exc}") from None


def _one_line(exc: ValidationError) -> str:
    error = exc.errors(include_input=False, include_url=False)[0]
    sentence = "is required" if error["type"] == "missing" else error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {sentence}" if error["loc"] else sentence


@cache
def load() -> Settings:
    """This process's settings. Ends the process with one line on standard error where one is unusable."""
    try:
        return Settings.read(os.environ)
    except ValueError as exc:
        sys.exit(f"punctual: {exc}")
