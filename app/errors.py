"""The tree of errors that a client can cause or meet. Adapters translate it once, in `web/errors.py`.

PunctualError            500  internal
├── Malformed            400  malformed
├── Unauthorized         401  unauthorized
├── Forbidden            403  forbidden
├── NotFound             404  not_found
├── Conflict             409  conflict
├── Stale                412  stale
├── TooLarge             413  too_large
├── Invalid              422  invalid       names each field and what is wrong with it
├── Unconditional        428  unconditional
├── TooMany              429  too_many
└── Unavailable          503  unavailable   says after how many seconds to try again
"""

from collections.abc import Mapping
from typing import Any, ClassVar

FieldErrors = Mapping[str, Any]
"""Per field a list of sentences, or the same again for the fields inside it: `{"schedule": {"at": ["…"]}}`."""


class PunctualError(Exception):
    """Something went wrong inside Punctual."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, *, errors: FieldErrors | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.errors: FieldErrors = errors or {}
        super().__init__(self.message)


class Malformed(PunctualError):
    """The request could not be read."""

    code = "malformed"
    status = 400


class Unauthorized(PunctualError):
    """A valid API key is required: send it as `Authorization: Bearer KEY`."""

    code = "unauthorized"
    status = 401


class Forbidden(PunctualError):
    """This key's role does not allow that."""

    code = "forbidden"
    status = 403


class NotFound(PunctualError):
    """There is nothing under this address."""

    code = "not_found"
    status = 404


class Conflict(PunctualError):
    """The change does not fit what is there."""

    code = "conflict"
    status = 409


class Stale(PunctualError):
    """It was changed since you read it: read it again, then decide."""

    code = "stale"
    status = 412


class TooLarge(PunctualError):
    """The request is too large."""

    code = "too_large"
    status = 413


class Invalid(PunctualError):
    """Some fields are not valid."""

    code = "invalid"
    status = 422


class Unconditional(PunctualError):
    """Say which version you mean: send If-Match with the ETag that you read."""

    code = "unconditional"
    status = 428


class TooMany(PunctualError):
    """Too many requests: the header Retry-After says in how many seconds there is room again."""

    code = "too_many"
    status = 429


class Unavailable(PunctualError):
    """A store is away; nothing was changed. Try again shortly."""

    code = "unavailable"
    status = 503
    retry_after: ClassVar[int] = 2
