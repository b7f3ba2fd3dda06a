"""An app of somebody else that registers tasks with Punctual. Nothing of Punctual is installed beside it."""

import json
import os

from celery import Celery

app = Celery("caller", broker=os.environ["BROKER_URL"], backend="rpc://")
# only where Redis carries the queues: {"global_keyprefix": "punctual:broker:"}
app.conf.broker_transport_options = json.loads(os.environ.get("BROKER_TRANSPORT_OPTIONS", "{}"))


def ask(name, **given):
    """Calls Punctual and waits for its answer."""
    return app.send_task(f"punctual.{name}", kwargs=given, queue="punctual").get(timeout=10)


def remind(name, target):
    """Registers a reminder; to call this again registers nothing new."""
    schedule = {"type": "cron", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Paris"}
    return ask("create_task", name=name, target=target, schedule=schedule, idempotency_key=f"caller:{name}")


def main():
    """Registers, reads back, and is told what is wrong."""
    registered = remind("coffee", "debug.echo")
    try:
        remind("tea", "no.such.target")
    except ValueError as exc:
        refused = repr(exc)
    print(json.dumps({"registered": registered["id"], "read": ask("get_task", task="coffee"), "refused": refused}))


if __name__ == "__main__":
    main()
