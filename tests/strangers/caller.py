"""An app of somebody else that registers tasks with Punctual. Nothing of Punctual is installed beside it."""

import json
import os

from celery import Celery

app = Celery("caller", broker=os.environ["BROKER_URL"], backend="rpc://")
# only where Redis carries the queues: {"global_keyprefix": "punctual:broker:"}
app.conf.broker_transport_options = json.loads(os.environ.get("BROKER_TRANSPORT_OPTIONS", "{}"))


def ask(call, **given):
    """Calls Punctual and waits for its answer."""
    return app.send_task(call, kwargs=given, queue="punctual").get(timeout=10)


def remind(name, target):
    """Registers a reminder; to call this again registers nothing new."""
    schedule = {"type": "cron", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Paris"}
    key = f"caller:{name}"
    return ask("punctual.create_task", name=name, target=target, schedule=schedule, idempotency_key=key)


def main():
    """Registers, reads back, and is told what is wrong."""
    answers = {"registered": remind("coffee", "debug.echo")["id"]}
    answers["read"] = ask("punctual.get_task", task="coffee")
    try:
        remind("tea", "no.such.target")
    except ValueError as exc:
        answers["refused"] = repr(exc)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
