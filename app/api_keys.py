"""Keys of the API: made, shown once, found again, revoked. Of a key's secret only a digest is kept."""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app import actors, audit, errors
from app.models import ApiKey
from app.states import Action

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "punc_"
ID, SECRET, CHECKSUM = 12, 32, 6
"""Characters of each part. 32 of 62 kinds are 190 random bits: no guess finds one, so a plain digest will do."""

FORM = re.compile(
    rf"{PREFIX}(?P<id>[0-9A-Za-z]{{{ID}}})(?P<secret>[0-9A-Za-z]{{{SECRET}}})(?P<sum>[0-9A-Za-z]{{{CHECKSUM}}})"
)

USED_EVERY = timedelta(minutes=1)
"""How exact `last_used_at` is."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A new key, and the text that its holder is to have. It cannot be had again."""

    key: ApiKey
    text: str = field(repr=False)


def create(session: Session, now: datetime, fields: Mapping[str, Any]) -> Made:
    """Makes a key."""
    key_id, secret = _draw(ID), _draw(SECRET)
    actor = actors.of(session)
    key = ApiKey(
        id=key_id, digest=_digest(secret), tasks=0, created_at=now, created_by=actor.name if actor else "", **fields
    )
    session.add(key)
    session.flush()
    audit.created(session, now, ApiKey, [key])
    return Made(key=key, text=f"{PREFIX}{key_id}{secret}{_checksum(key_id + secret)}")


def revoke(session: Session, now: datetime, key_id: str) -> ApiKey:
    """Ends a key for good; web processes that remember it refuse it within seconds. Raises NotFound."""
    key = session.scalars(select(ApiKey).where(ApiKey.id == key_id).with_for_update()).one_or_none()
    if key is None:
        raise errors.NotFound("There is no such key.")
    if key.revoked_at is None:
        with audit.noting(session, now, Action.REVOKE, [key]):
            key.revoked_at = now
    return key


def split(text: str) -> tuple[str, str] | None:
    """The id and the secret in what should be a key; None where it is none, which its checksum tells."""
    found = FORM.fullmatch(text)
    if found is None or _checksum(found["id"] + found["secret"]) != found["sum"]:
        return None
    return found["id"], found["secret"]


def note_use(session: Session, key_id: str, now: datetime) -> None:
    """Notes that a key has just opened something."""
    used = update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now)
    session.execute(used.execution_options(synchronize_session=False))


def opens(key: ApiKey, secret: str, now: datetime) -> bool:
    """Whether a secret is this key's, which is neither revoked nor past its end."""
    is_its = hmac.compare_digest(key.digest, _digest(secret))  # first, so that the others take no less time
    return is_its and is_valid(key, now)


def is_valid(key: ApiKey, now: datetime) -> bool:
    """Whether a key is neither revoked nor past its end."""
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def count(session: Session, more: int) -> None:
    """Counts tasks that the actor registers. Raises Forbidden where its key may not have so many.

    Last in a transaction, as two with the same key take turns from here on. One conditional UPDATE: of two that
    want the last place, one finds it taken.
    """
    actor = actors.of(session)
    if actor is None or actor.key is None:
        return
    within = or_(ApiKey.max_tasks.is_(None), ApiKey.tasks + more <= ApiKey.max_tasks)
    taken = session.execute(
        update(ApiKey)
        .where(ApiKey.id == actor.key, within)
        .values(tasks=ApiKey.tasks + more)
        .returning(ApiKey.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    bound = None if taken else session.scalar(select(ApiKey.max_tasks).where(ApiKey.id == actor.key))
    if bound is not None:
        raise errors.Forbidden(f"This key may have {bound:,} tasks at most.")


def uncount(session: Session, fewer: Mapping[str, int]) -> None:
    """Counts tasks no more, so many of each key."""
    for key_id, count in sorted(fewer.items()):  # in one order, so that two cannot deadlock
        left = update(ApiKey).where(ApiKey.id == key_id).values(tasks=func.greatest(ApiKey.tasks - count, 0))
        session.execute(left.execution_options(synchronize_session=False))


def _draw(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(text: str) -> str:
    """CRC-32 in base 62: tells a key that was mistyped, or is none, without a look into the database."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECKSUM):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
