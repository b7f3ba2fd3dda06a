"""`punctual.email`: tells of incidents by e-mail, over the server that `PUNCTUAL_SMTP_URL` names."""

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from app import messages, settings
from app.broker import celery_app
from app.settings import MailServer
from workers import letters, notified
from workers.notified import NotTaken
from workers.verdicts import GiveUp

TIMEOUT = 15.0
"""Seconds for each step; for all of it the task has a limit."""

FOR_GOOD = 500
"""From here on a server's answer says that another try would be answered the same."""


@celery_app.task(name=messages.EMAIL, base=notified.Notice, bind=True, packable=False)  # type: ignore[untyped-decorator]
def email(self: Any, notice: dict[str, Any], to: str) -> dict[str, Any]:  # noqa: ARG001 - as every target of ours
    """Tells of incidents by e-mail."""
    config = settings.load()
    if config.PUNCTUAL_SMTP_URL is None:
        raise NotTaken("PUNCTUAL_SMTP_URL is not set here: workers need it as beats do.")
    server = settings.mail_server(config.PUNCTUAL_SMTP_URL)
    mail = compose(notice, config.PUNCTUAL_MAIL_FROM, to, config.PUNCTUAL_PAGE_URL)
    try:
        with _connection(server, _domain(config.PUNCTUAL_MAIL_FROM)) as connection:
            connection.send_message(mail)
    except smtplib.SMTPRecipientsRefused as exc:
        [(code, said)] = exc.recipients.values()
        raise _refusal(code, said) from None
    except smtplib.SMTPDataError as exc:
        raise _refusal(exc.smtp_code, exc.smtp_error) from None
    except (OSError, smtplib.SMTPException) as exc:
        raise NotTaken(f"{server.host} port {server.port}: {type(exc).__name__}: {exc}") from None
    return {"sent": True, "message_id": mail["Message-ID"]}


def compose(notice: letters.Notice, sender: str, to: str, pages: str) -> EmailMessage:
    """The mail: the same in each attempt, so that one that is sent twice is known by its id."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = f"Punctual <{sender}>"
    mail["To"] = to
    mail["Subject"] = letters.subject(notice)
    mail["Date"] = format_datetime(datetime.fromisoformat(notice["at"]))
    mail["Message-ID"] = _id(notice["id"], sender)
    answers = [_id(each, sender) for each in notice.get("answers", ())]
    if answers:
        mail["In-Reply-To"] = answers[-1]
        mail["References"] = " ".join(answers)
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    mail.set_content(letters.text(notice, pages), cte="quoted-printable")  # any server takes that
    return mail


@contextmanager
def _connection(server: MailServer, name: str) -> Iterator[smtplib.SMTP]:
    """A connection that is ready to take mails. TLS is checked against the machine's certificates."""
    options: dict[str, Any] = {"timeout": TIMEOUT, "local_hostname": name}
    if server.scheme == "smtps":
        made: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, context=ssl.create_default_context(), **options)
    else:
        made = smtplib.SMTP(server.host, server.port, **options)
    with made as connection:
        if server.scheme == "smtp+starttls":
            connection.starttls(context=ssl.create_default_context())
        if server.user is not None:
            connection.login(server.user, server.password)
        yield connection


def _refusal(code: int, said: bytes | str) -> Exception:
    """What a server's no means: another try, or none."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    words = f"The server did not take the mail: {code} {letters.line(text)}"
    return GiveUp(words) if code >= FOR_GOOD else NotTaken(words)


def _id(notice: str, sender: str) -> str:
    return f"<{notice}@{_domain(sender)}>"


def _domain(address: str) -> str:
    return address.rpartition("@")[2]
