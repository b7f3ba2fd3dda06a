"""An app of somebody else whose tasks Punctual may call. Nothing of Punctual is installed beside it."""

import json
import os

from celery import Celery

app = Celery("billing", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_default_queue="billing",
    # names of its own for what Celery shares by default: its workers and ours do not command each other
    control_exchange="billing",
    event_exchange="billing.events",
    event_queue_prefix="billing.events",
    # only where Redis carries the queues: {"global_keyprefix": "punctual:broker:"}
    broker_transport_options=json.loads(os.environ.get("BROKER_TRANSPORT_OPTIONS", "{}")),
)


@app.task(name="billing.charge")
def charge(customer: str, cents: int) -> dict:
    """Charges a customer; refuses to pay out."""
    if cents < 0:
        raise ValueError("cents must be 0 or more")
    return {"customer": customer, "charged": cents}
