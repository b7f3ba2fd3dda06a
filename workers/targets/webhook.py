"""`punctual.webhook`: tells of incidents by a signed request.

The address may hold a token: it stands in the settings or in the task that names it, never in a run, an error or a log.
"""

from typing import Any

import httpx

from app import db, messages, notices, notifications, settings
from app.broker import celery_app
from workers import letters, notified
from workers.notified import NotTaken
from workers.targets import gate, http
from workers.verdicts import GiveUp

TIMEOUT = 20.0
"""Seconds for all of it."""


@celery_app.task(name=messages.WEBHOOK, base=notified.Notice, bind=True, packable=False)  # type: ignore[untyped-decorator]
def webhook(self: Any, notice: dict[str, Any]) -> dict[str, Any]:
    """Tells of incidents by a signed request."""
    config = settings.load()
    is_default = notice["audience"] == notices.DEFAULT
    url = _default(config) if is_default else _own(notice)
    if url is None:
        return {"sent": False, "why": "None of its tasks names this webhook any more."}
    try:
        address = gate.parse(url)
    except gate.UrlRefused as exc:
        raise GiveUp(str(exc)) from None
    content = http.encode(letters.body(notice, config.PUNCTUAL_PAGE_URL))
    headers = http.prepare(self.request.id, content, {}, is_json=True)
    try:
        # the address of the settings is the operator's own, and may be a private one; a task's is a client's
        answer, _ = http.send(gate.client(TIMEOUT, is_open=is_default), "POST", address, headers, content)
    except gate.AddressRefused as exc:
        raise GiveUp(str(exc)) from None
    except httpx.HTTPError as exc:
        raise NotTaken(f"The webhook did not answer: {type(exc).__name__}: {exc}") from None
    if answer.status_code == httpx.codes.GONE:
        raise GiveUp("The webhook is gone for good, it says: 410.")
    if not answer.is_success:
        # nothing of the body: many an answer repeats the path that it did not find
        raise NotTaken(f"The webhook answered {answer.status_code}.")
    return {"sent": True, "status": answer.status_code}


def _default(config: settings.Settings) -> str:
    if config.PUNCTUAL_NOTIFY_WEBHOOK is None:
        raise NotTaken("PUNCTUAL_NOTIFY_WEBHOOK is not set here: workers need it as beats do.")
    return config.PUNCTUAL_NOTIFY_WEBHOOK.get_secret_value()


def _own(notice: dict[str, Any]) -> str | None:
    tasks = [incident["task_id"] for incident in notice["incidents"]]
    with db.transaction() as session:
        return notifications.recipient(session, notice["audience"], tasks)
