"""Celery's pool with real processes: those that have nothing to do leave when asked, and none other does."""

import os
import time

import pytest
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, set_event_loop
from kombu.asynchronous.timer import Timer
from stores import poll

from workers import pool


class Harness:
    """A pool and the loop that it lives in, turned by hand."""

    def __init__(self, app, size):
        self.hub = Hub()
        set_event_loop(self.hub)
        self.pool = TaskPool(
            size, app=app, threads=False, putlocks=False, initargs=(app, "tests@here"), lost_worker_timeout=2
        )
        self.pool.start()
        self.pool.register_with_event_loop(self.hub)
        self.done, self.failed = [], []

    @property
    def inner(self):
        return self.pool._pool

    def apply(self, target, *args):
        self.pool.apply_async(target, args, callback=self.done.append, error_callback=self.failed.append)

    def turn(self, until, within=10.0):
        """Turns the loop until something is so."""

        def look():
            self.hub.call_soon(int)  # so that a turn does not wait for an event
            next(loop)
            return until()

        loop = self.hub.create_loop()
        poll(look, within, every=0.005)


@pytest.fixture
def harness(migrated):
    from app.broker import celery_app  # noqa: PLC0415 - only after the environment stands

    made = Harness(celery_app, 3)
    made.turn(lambda: len(pool.idle(made.inner)) == 3)
    yield made
    made.pool.terminate()
    made.hub.close()
    set_event_loop(None)


def test_idle_processes_leave_without_a_word_and_others_come_in_their_place(harness):
    before = pool.pids(harness.inner)
    assert pool.dismiss(harness.inner, 2) == 2
    harness.turn(lambda: len(harness.inner._pool) == 1)
    assert pool.pids(harness.inner) == before[:1]
    harness.pool.grow(2)
    harness.pool.maintain_pool()
    harness.turn(lambda: len(pool.idle(harness.inner)) == 3)
    assert len(harness.inner._queues) == 3  # the pipes of those that left are used again


def test_a_process_that_was_just_sent_a_job_is_not_asked_though_it_has_not_acknowledged_it(harness):
    for n in range(3):
        harness.apply(time.sleep, 0.3 + n / 10)
    harness.turn(lambda: len(harness.inner._busy_workers) == 3)
    assert pool.dismiss(harness.inner, 3) == 0
    harness.turn(lambda: len(harness.done) == 3)
    assert harness.failed == []


def test_a_job_that_comes_while_a_process_leaves_goes_to_another(harness):
    pool.dismiss(harness.inner, 2)
    for _ in range(20):
        harness.apply(os.getpid)
    harness.turn(lambda: len(harness.done) == 20)
    assert set(harness.done) == {harness.inner._pool[0].pid}
    assert harness.failed == []


def test_the_word_to_leave_waits_behind_a_job_that_was_written_before(harness):
    harness.apply(time.sleep, 0.5)
    harness.turn(lambda: harness.inner._busy_workers)
    [busy] = [process for process in harness.inner._pool if process.inqW_fd in harness.inner._busy_workers]
    busy.inq.put(None)
    harness.turn(lambda: len(harness.done) == 1)
    assert harness.failed == []


def test_settling_waits_until_what_was_sent_is_acknowledged(harness):
    harness.apply(time.sleep, 0.5)
    harness.turn(lambda: harness.inner._busy_workers)
    pool.settle(harness.inner)
    [job] = harness.inner._cache.values()
    assert job.accepted()
    harness.turn(lambda: len(harness.done) == 1)


def test_the_limits_of_what_has_ended_are_forgotten_and_the_others_keep_their_order():
    timer = Timer()
    due = []
    entries = [timer.call_at(time.monotonic() - 100 + n, due.append, (n,)) for n in range(50)]
    for number, entry in enumerate(entries):
        if number % 10:
            entry.cancel()
    pool.forget_timers(timer)
    assert len(timer.queue) == 5
    turns = iter(timer)
    for _ in range(10):
        _, entry = next(turns)
        if entry:
            timer.apply_entry(entry)
    assert due == [0, 10, 20, 30, 40]
