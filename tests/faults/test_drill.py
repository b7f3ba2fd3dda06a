"""One short hit of each fault of the drill: the same harness and checker. Other tests run beside on the same cores:
so half as many runs fall due as in the campaign, and what is bounded in seconds may take three times as long. That
nothing is lost, doubled, early or without a slot, and that no process ends, is as strict as there.
"""

import random
from dataclasses import replace

import psycopg
import pytest
from stores import BY_HAND, GIVEN, need

from drill import campaign, faults, releases, report, stack, stores, strikes
from drill.faults import Bound, Fault

PLAN = campaign.Plan(full=False, lead=3, quiet=2, between=2.5, most=99, per_second=10, promise=30)
ROWS = {fault.name: fault for fault in (*faults.SINGLE, *faults.UPGRADES)}


def has_a_broker():
    return stores.has_rabbitmq() or (GIVEN["BROKER_URL"] or "").startswith("amqp")


@pytest.fixture(scope="module")
def a_broker():
    need("RabbitMQ: install rabbitmq-server, or set BROKER_URL to an amqp:// address", there=has_a_broker())


@pytest.fixture(scope="module")
def attacked(a_broker):
    """Commits a fault on a running stack, which serves all tests; returns what came of it."""
    with stack.running() as running:
        yield lambda fault: attack(running, fault)


def eased(bound):
    slower = {name: 3 * value for name in ("worst", "p99", "after") if (value := getattr(bound, name)) is not None}
    return replace(bound, **slower)


def attack(running, fault):
    fault = replace(fault, bound=eased(fault.bound))
    seed = random.randrange(1000)
    print(f"\nseed {seed}")
    result = campaign.attack(running, fault, PLAN, random.Random(seed), print)
    print(report.table([result]), result.answers, *(result.verdict.offences if result.verdict else ()), sep="\n")
    assert result.broken == []
    assert result.verdict.slots > PLAN.per_second
    assert len(result.committed) == len(fault.variants)
    return result


def some(name, *places):
    """A row with some of its variants only."""
    return replace(ROWS[name], variants=tuple(ROWS[name].variants[place] for place in places))


def test_beats_killed_paused_and_gone(attacked):
    rows = [ROWS["leader killed"], some("leader paused", 1), ROWS["all beats but one gone"]]
    attacked(faults.joined("beats", rows))


@BY_HAND
def test_all_beats_gone(attacked):
    attacked(ROWS["all beats gone"])


def test_a_beat_fails_between_any_two_steps(attacked):
    rows = [some("beat fails at fired", 0), some("beat fails at published", 1), some("beat fails at confirmed", 0)]
    attacked(faults.joined("beat fails", rows))


def test_a_worker_fails_between_any_two_steps(attacked):
    rows = [some("worker fails at claimed", 0), some("worker fails at called", 1), some("worker fails at recorded", 0)]
    attacked(faults.joined("worker fails", rows))


def test_redis_emptied_gone_and_back_empty(attacked):
    rows = [ROWS["Redis emptied"], ROWS["Redis gone"], ROWS["Redis gone, and back empty"]]
    assert attacked(faults.joined("Redis", rows)).answers.keys() == {"200"}


def test_rabbitmq_gone(attacked):
    need("a RabbitMQ that can be stopped: install rabbitmq-server", there=stores.has_rabbitmq())
    assert attacked(ROWS["RabbitMQ gone"]).answers.keys() == {"200"}


def test_postgresql_gone(attacked):
    assert attacked(ROWS["PostgreSQL gone"]).answers.keys() == {"200", "503"}


def test_a_queue_purged_and_a_queue_deleted_under_a_backlog(attacked, monkeypatch):
    # a third of the campaign's: a machine that is shared works it off in the time that the bound allows for the repair
    monkeypatch.setattr(strikes, "BACKLOG", 300)
    attacked(faults.joined("queue", [ROWS["queue purged"], ROWS["queue deleted"]]))


@BY_HAND
@pytest.mark.parametrize("store", stack.STORES)
def test_a_store_that_nobody_reaches(attacked, store):
    variants = tuple(faults.every_link(store, mode) for mode in ("cut", "silent"))
    # while PostgreSQL or the only RabbitMQ is out of reach nothing can start; Redis is missed by nobody
    bound = Bound(after=10, worst=8 if store == "Redis" else None, restarts=False)
    result = attacked(Fault(name=f"{store} out of reach", variants=variants, bound=bound, hits=1))
    assert ("503" in result.answers) == (store == "PostgreSQL")


def test_a_single_link_cut_or_silent(attacked):
    # beat to PostgreSQL cut, worker to RabbitMQ silent, web to PostgreSQL silent and to Redis cut
    rows = [
        some("link of beat cut or silent", 0),
        some("link of worker cut or silent", 5),
        some("link of web cut or silent", 1, 2),
    ]
    attacked(faults.joined("links", rows))


@BY_HAND
def test_a_link_of_one_beat_cut_or_silent(attacked):
    attacked(ROWS["link of one beat cut or silent"])


@BY_HAND
def test_every_process_is_replaced_and_nobody_notices(attacked):
    attacked(ROWS["every process replaced"])


@BY_HAND
def test_the_previous_release_is_replaced_by_this_one_and_nobody_notices(a_broker):
    need("git, and the history of this repository", there=releases.is_there())
    with stack.running(previous=True) as running:
        before = schema(running)
        attack(running, ROWS["upgrade from the previous release"])
        assert schema(running) > before
        assert {process.keeper.program.cwd for process in running.processes.values()} == {stack.ROOT}


def schema(running):
    """The number of its newest migration."""
    address = running.record_url.replace("postgresql+psycopg:", "postgresql:", 1)
    with psycopg.connect(address) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


@BY_HAND
def test_two_faults_at_once(attacked):
    attacked(faults.pairs(random.randrange(1000), count=1, own_rabbitmq=stores.has_rabbitmq()))


@BY_HAND
def test_each_store_fails_over():
    need("RabbitMQ: install rabbitmq-server", there=stores.has_rabbitmq())
    with stack.running(replicated=True) as running:
        attack(running, ROWS["Redis failing over"])
        attack(running, ROWS["RabbitMQ losing a node"])
        attack(running, ROWS["PostgreSQL failing over"])
