"""Confirmed publishing on RabbitMQ: what is returned is what the broker has."""

import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from amqp.abstract_channel import AbstractChannel

from app import broker, publishing, pulse, settings
from app.messages import DEAD_LETTERS, Message, Ticket
from drill import links

RUNS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 20,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "punctual.dead",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-consumer-timeout": 93_600_000,
}
ARGUMENTS = {"default": RUNS, "reports": RUNS, "punctual": {}, "punctual.dead": {"x-queue-type": "quorum"}}
"""As every release so far declares them."""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_of_queues_stay_what_they_are(name):
    declared = broker.queue(name)
    assert (declared.queue_arguments or {}, declared.durable, declared.exclusive, declared.auto_delete) == (
        (ARGUMENTS[name], True, False, False)
    ), "RabbitMQ refuses a queue that stands with others: see Queue arguments in docs/operations.md"


def message(queue="default", **changed):
    ticket = Ticket(task=uuid4(), run=uuid4(), slot=datetime.now(UTC), attempt=1)
    made = {"ticket": ticket, "target": "debug.echo", "queue": queue, "priority": 5, "args": [1], "kwargs": {"n": 2}}
    return Message(**made | {"timeout": timedelta(seconds=300)} | changed)


def take(queue):
    """The next message of a queue, or None."""
    with broker.celery_app.connection_for_read() as connection:
        return connection.default_channel.basic_get(queue, no_ack=True)


def test_a_batch_is_confirmed_and_counted(publisher, monkeypatch):
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 30)  # a disk may be busy
    batch = [message() for _ in range(1000)]
    assert publisher.publish(batch) == batch
    assert broker.depth("default") == 1000


def test_a_message_is_an_ordinary_celery_message_with_a_ticket(publisher):
    sent = message()
    publisher.publish([sent])
    got = take("default")
    assert json.loads(got.body) == [[1], {"n": 2}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    headers = got.headers
    assert (headers["task"], headers["id"]) == ("debug.echo", str(sent.ticket.run))
    assert headers["timelimit"] == [305, 300]
    assert headers["eta"] is headers["expires"] is None
    assert Ticket.decode(headers["punctual"]) == sent.ticket
    assert got.properties["delivery_mode"] == 2


@pytest.fixture
def waits(monkeypatch):
    """Of each wait for an answer of RabbitMQ the sign that was given before it."""
    signs = []

    def wait(channel, *args, **options):
        signs.append(pulse.last(threading.get_ident()))
        return usual(channel, *args, **options)

    usual = AbstractChannel.wait
    monkeypatch.setattr(AbstractChannel, "wait", wait)
    return signs


def test_no_sign_stands_for_more_waits_for_the_broker_than_it_may_last(publisher, waits):
    """As it may fall silent at any of them, and each is nearly as long as a beat may stand still."""
    publisher.close()
    publisher.reaches()
    publisher.reaches()
    assert len(publisher.publish([message("test.new"), message()])) == 2
    depths = broker.depths(["default", "test.new", "test.none"])
    assert [name for name, depth in depths.items() if depth is None] == ["test.none"]
    publisher.close()
    broker.ping()
    assert len(waits) > 15
    for sign, times in Counter(waits).items():
        assert times * max(broker.BOUNDED.values()) < sign.within, sign
    with broker.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_delete("test.new")


def test_a_connection_is_left_at_once_though_the_broker_is_silent(publisher):
    link, url = links.server(os.environ["BROKER_URL"])
    connection = broker.celery_app.connection_for_write(url, transport_options=broker.BOUNDED)
    broker.connect(connection)
    assert connection.default_channel.is_open
    with link.silent():
        began = time.monotonic()
        broker.leave(connection)
        assert time.monotonic() - began < broker.BOUNDED["read_timeout"]
    assert not connection.connected
    link.close()


def test_a_queue_that_is_gone_returns_its_messages_and_is_declared_again(publisher):
    publisher.publish([message()])
    with broker.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_delete("default")
    lost, kept = message(), message("test.kept")
    assert publisher.publish([lost, kept]) == [kept]
    assert publisher.publish([lost]) == [lost]
    assert broker.depth("default") == 1
    with broker.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_delete("test.kept")


def test_a_broker_that_returns_more_than_the_sockets_hold_still_takes_the_rest(publisher, monkeypatch):
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 30)  # it is much to send
    publisher.publish([message()])
    with broker.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_delete("default")
    batch = [message(args=["x" * 32_768]) for _ in range(1_000)]
    assert publisher.publish(batch) == []
    assert publisher.connection is not None, "each was returned, none timed out"
    assert publisher.publish(batch[:10]) == batch[:10]


def test_a_queue_with_other_arguments_takes_its_own_messages_only(publisher):
    with broker.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_declare("test.lost", durable=True, auto_delete=False)
    foreign, ours = message("test.lost"), message()
    assert publisher.publish([foreign, ours]) == [ours]
    with broker.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_delete("test.lost")


def test_a_broken_connection_confirms_nothing_and_the_next_batch_makes_a_new_one(publisher):
    publisher.publish([message()])
    publisher.connection.connection.transport.sock.close()
    batch = [message() for _ in range(3)]
    assert publisher.publish(batch) == []
    assert publisher.publish(batch) == batch


def test_a_broker_that_reads_no_more_is_given_up_before_its_beat_counts_as_hung(publisher):
    publisher.publish([message()])
    transport = publisher.connection.connection.transport
    ours, theirs = socket.socketpair()
    with transport.sock, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", broker.BOUNDED["write_timeout"], 0))
        transport.sock, transport._write = ours, ours.sendall
        began = time.monotonic()
        assert publisher.publish([message(args=["x" * 32_768]) for _ in range(100)]) == []
    assert time.monotonic() - began < broker.ANSWER_WITHIN
    assert publisher.connection is None


def test_a_link_that_was_cut_or_fell_silent_is_seen_before_anything_is_taken_out_for_it(
    publisher, eventually, monkeypatch
):
    monkeypatch.setattr(publishing, "ASK_AGAIN", 60)
    assert publisher.reaches()
    publisher.connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
    assert not publisher.reaches()
    assert not publisher.reaches(), "it is not asked again at once"
    monkeypatch.setattr(publishing, "ASK_AGAIN", 0)
    publisher.ask_at = 1.0  # long ago
    assert eventually(publisher.reaches), "it connects anew"
    transport = publisher.connection.connection.transport
    ours, theirs = socket.socketpair()
    with transport.sock, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", broker.BOUNDED["read_timeout"], 0))
        transport.sock, transport._write, transport._quick_recv = ours, ours.sendall, ours.recv
        assert not publisher.reaches()
    assert publisher.publish([message()])


def test_a_confirm_that_does_not_come_is_not_taken_for_one(publisher, monkeypatch):
    publisher.publish([message()])
    publisher.channel.events["basic_ack"].clear()  # the ack is lost on its way
    batch = [message() for _ in range(3)]
    with monkeypatch.context() as impatient:
        impatient.setattr(publishing, "CONFIRM_TIMEOUT", 0.2)
        assert publisher.publish(batch) == []
    assert publisher.connection is None
    assert publisher.publish(batch) == batch


def test_a_rejected_message_ends_in_the_dead_letter_queue_with_its_bytes(publisher, eventually):
    broker.declare()
    publisher.publish([message()])
    with broker.celery_app.connection_for_read() as connection:
        got = connection.default_channel.basic_get("default")
        connection.default_channel.basic_reject(got.delivery_tag, requeue=False)
        body = got.body
    dead = eventually(lambda: take(DEAD_LETTERS))
    assert dead.body == body
    assert dead.headers["punctual"]


@pytest.mark.parametrize(("given", "sent"), [(0, 0), (4, 4), (5, 4), (6, 6), (9, 9)])
def test_only_a_priority_above_the_usual_one_counts_as_high_on_rabbitmq(publisher, given, sent):
    publisher.publish([message(priority=given)])
    assert take("default").properties["priority"] == sent


@pytest.fixture
def billing(publisher, monkeypatch):
    """A queue of another app, with arguments of its own."""
    monkeypatch.setenv("PUNCTUAL_EXTERNAL_TARGETS", "billing.*@test.billing")
    settings.load.cache_clear()
    with broker.celery_app.connection_for_write() as connection:
        to = connection.default_channel
        to.queue_delete("test.billing")
        to.queue_declare("test.billing", durable=True, auto_delete=False, arguments={"x-max-length": 9})
        yield to
        to.queue_delete("test.billing")
    monkeypatch.undo()
    settings.load.cache_clear()


def test_another_apps_queue_is_written_to_and_never_declared(publisher, billing):
    sent = message("test.billing", target="billing.charge")
    assert publisher.publish([sent]) == [sent]
    got = take("test.billing")
    _, _, embed = json.loads(got.body)
    [success], [failure] = embed["callbacks"], embed["errbacks"]
    assert (success["task"], failure["task"]) == ("punctual.record_success", "punctual.record_failure")
    assert Ticket.decode(success["kwargs"]["ticket"]) == Ticket.decode(failure["kwargs"]["ticket"]) == sent.ticket
    assert got.headers["ignore_result"] is None
    assert got.properties["expiration"] == "30000"


def test_another_apps_queue_that_is_not_there_leaves_its_runs_pending_and_is_said(publisher, billing, caplog):
    billing.queue_delete("test.billing")
    theirs, ours = message("test.billing", target="billing.charge"), message()
    assert publisher.publish([theirs, ours]) == [ours]
    assert "queue test.billing is not there" in caplog.text
    assert broker.depth("test.billing") is None
