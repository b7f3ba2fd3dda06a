"""Fetching ahead: what begins it, what ends it, and where each message goes."""

from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from app import messages, packs
from app.broker import celery_app
from app.messages import Pack, Ticket
from workers import durations, gathering
from workers.gathering import Gatherer

QUICK, SLOW = "quick.one", "slow.one"
PROCESSES = 2


class Delivery:
    """One message of the broker, and what became of it."""

    def __init__(self, target=QUICK, *, attempt=1, run=None, priority=4, returned=0, body=None, **headers):
        slot = datetime(2026, 1, 1, tzinfo=UTC)
        self.run = run or uuid4()
        ticket = Ticket(task=uuid4(), run=self.run, slot=slot, attempt=attempt)
        made = celery_app.amqp.as_task_v2(str(self.run), target, [1], {}, soft_time_limit=30, time_limit=35)
        self.headers = made.headers | {messages.HEADER: ticket.encode(), "x-delivery-count": returned} | headers
        self.payload = made.body if body is None else body
        self.delivery_info = {"routing_key": "default"}
        self.properties = {"priority": priority}
        self.fate = None

    def ack(self):
        self.fate = "acked"

    def reject(self, requeue):
        self.fate = "back" if requeue else "parked"

    def reject_log_error(self, _log, _errors, requeue):
        self.reject(requeue)


class World:
    """A consumer of Celery's with its loop, as far as a gatherer knows it."""

    connection_errors = ()

    def __init__(self):
        self.app = celery_app
        self.pool = SimpleNamespace(num_processes=PROCESSES)
        self.soon, self.later, self.handled, self.fetches = [], [], [], []
        self.hub = SimpleNamespace(call_soon=self.soon.append)
        self.timer = SimpleNamespace(call_after=lambda seconds, call: self.later.append((seconds, call)))
        self.gatherer = Gatherer(self, self.handled.append)

    def turn(self):
        while self.soon:
            self.soon.pop(0)()

    def after(self, seconds):
        due = [call for at, call in self.later if at <= seconds]
        self.later = [(at, call) for at, call in self.later if at > seconds]
        for call in due:
            call()

    def packs(self):
        return [Pack.decode(delivery.payload[0][0]) for delivery in self.handled]


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(durations, "lately", {QUICK: 0.0005, "other.quick": 0.001, SLOW: 0.02})
    made = World()
    monkeypatch.setattr(made.gatherer, "begin", lambda queue: made.fetches.append(f"{queue} asked"))
    return made


@pytest.fixture
def fetching(world):
    """One that fetches ahead; `cancel` says when it ceased."""
    world.gatherer.fetching = SimpleNamespace(cancel=lambda: world.fetches.append("ceased"))
    world.connection = SimpleNamespace(connection_errors=(), channel_errors=())
    return world


def notice(world, *deliveries):
    for delivery in deliveries:
        world.gatherer.notice(delivery)
    world.turn()


def backlog(count=gathering.STREAK, **given):
    return [Delivery(**given) for _ in range(count)]


def test_after_many_quick_runs_in_a_row_the_broker_is_asked_for_more(world):
    notice(world, *backlog(gathering.STREAK - 1))
    assert world.fetches == []
    notice(world, Delivery(), *backlog(100))
    assert world.fetches == ["default asked"], "and not again at once"


@pytest.mark.parametrize(
    "other",
    [
        {"target": SLOW},
        {"target": "nobody.knows"},
        {"attempt": 2},
        {"punctual": None},
        {"punctual": "no ticket"},
    ],
)
def test_anything_else_in_between_does_not(world, other):
    notice(world, *backlog(gathering.STREAK - 1), Delivery(**other), *backlog(gathering.STREAK - 1))
    assert world.fetches == []


def test_nor_does_it_begin_where_packs_are_switched_off(world, monkeypatch):
    monkeypatch.setattr(gathering.settings, "load", lambda: SimpleNamespace(PUNCTUAL_PACKS=False))
    notice(world, *backlog(200))
    assert world.fetches == []


def test_what_was_fetched_travels_on_as_a_pack_and_is_acknowledged_as_one(fetching):
    fetched = backlog(packs.FEW)
    for delivery in fetched:
        fetching.gatherer.take(delivery)
    [pack] = fetching.packs()
    assert [message.id for message in pack.messages] == [delivery.run for delivery in fetched]
    assert (pack.target, pack.queue, pack.priority, pack.messages[0].args) == (QUICK, "default", 4, [1])
    assert {delivery.fate for delivery in fetched} == {None}
    fetching.handled[0].ack()
    assert {delivery.fate for delivery in fetched} == {"acked"}


def test_a_pack_that_is_given_back_gives_each_message_back(fetching):
    fetched = backlog(packs.FEW)
    for delivery in fetched:
        fetching.gatherer.take(delivery)
    fetching.handled[0].reject(requeue=True)
    assert {delivery.fate for delivery in fetched} == {"back"}


def test_a_few_wait_for_others_for_a_moment_only(fetching):
    fetching.gatherer.take(Delivery())
    fetching.gatherer.take(Delivery())
    assert fetching.handled == []
    fetching.after(gathering.TOGETHER)
    assert [len(pack.messages) for pack in fetching.packs()] == [2]


def test_each_pack_has_one_target_and_one_priority(fetching):
    kinds = [{}, {"target": "other.quick"}, {"priority": 9}]
    for number in range(packs.FEW):
        fetching.gatherer.take(Delivery(**kinds[number % 3]))
    kept = {(message.target, message.priority) for pack in fetching.packs() for message in pack.messages}
    assert len(fetching.packs()) == len(kept) == 3


def test_no_more_packs_are_made_than_the_processes_want(fetching):
    for delivery in backlog(gathering.AHEAD * PROCESSES):
        fetching.gatherer.take(delivery)
    assert len(fetching.handled) == gathering.UNDER_WAY * PROCESSES
    waiting = len(fetching.gatherer.collected)
    fetching.handled[0].ack()
    fetching.turn()
    assert len(fetching.packs()[-1].messages) == waiting


def test_a_run_that_came_twice_is_in_no_pack_twice(fetching):
    run = UUID(int=7)
    fetched = [Delivery(run=run), *backlog(packs.FEW - 2), Delivery(run=run)]
    for delivery in fetched:
        fetching.gatherer.take(delivery)
    first, second = fetching.packs()
    assert len({message.id for message in first.messages}) == len(first.messages) == packs.FEW - 1
    assert [message.id for message in second.messages] == [run]
    for delivery in fetching.handled:
        delivery.ack()
    assert {delivery.fate for delivery in fetched} == {"acked"}


@pytest.mark.parametrize("slow", [{"target": SLOW}, {"attempt": 2}, {"body": "no body"}, {"timelimit": None}])
def test_a_run_that_must_not_wait_goes_back_once_no_more_is_fetched(fetching, slow):
    delivery = Delivery(**slow)
    delivery.reject = lambda requeue: fetching.fetches.append(f"back: {requeue}")
    fetching.gatherer.take(delivery)
    assert fetching.fetches == ["ceased", "back: True"]
    notice(fetching, *backlog())
    assert fetching.fetches == ["ceased", "back: True"], "it begins again after a pause only"


def test_one_that_came_back_often_is_kept(fetching):
    """RabbitMQ counts, and would park it in the end."""
    delivery = Delivery(SLOW, returned=gathering.RETURNS)
    fetching.gatherer.take(delivery)
    assert delivery.fate is None
    assert fetching.handled == [delivery]


def test_a_worker_that_stops_gives_back_what_is_in_no_pack(fetching):
    fetched = backlog(3)
    for delivery in fetched:
        fetching.gatherer.take(delivery)
    fetching.gatherer.stop()
    fetching.after(gathering.TOGETHER)
    assert {delivery.fate for delivery in fetched} == {"back"}
    assert fetching.fetches == ["ceased"]
    assert fetching.handled == []


def test_it_ends_when_nothing_comes_any_more(fetching, monkeypatch):
    now = gathering.time.monotonic()
    fetching.gatherer.heard_at = now
    monkeypatch.setattr(gathering.time, "monotonic", lambda: now)
    fetching.gatherer.look()
    assert fetching.fetches == []
    now += gathering.QUIET + 0.1
    fetching.after(gathering.QUIET)
    assert fetching.fetches == ["ceased"]


def test_a_lost_connection_takes_everything_with_it(fetching):
    for delivery in backlog(gathering.AHEAD):
        fetching.gatherer.take(delivery)
    sent = len(fetching.handled)
    fetching.gatherer.forget()
    fetching.after(gathering.QUIET)
    fetching.handled[0].ack()
    fetching.turn()
    assert len(fetching.handled) == sent
