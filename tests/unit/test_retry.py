"""Back-off: doubling, bounded, drawn."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import retry

FIVE = timedelta(seconds=5)
LIMIT = timedelta(minutes=10)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5), (2, 10), (3, 20), (7, 320), (8, 600), (10_000, 600)])
def test_each_failure_doubles_the_wait_up_to_its_bound(attempt, seconds):
    wait = retry.delay(attempt, backoff=FIVE, backoff_max=LIMIT, jitter=False, draw=0.5)
    assert wait == timedelta(seconds=seconds)


@settings(derandomize=True, deadline=None, database=None)
@given(attempt=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_jitter_draws_from_the_whole_wait(attempt, draw):
    full = retry.delay(attempt, backoff=FIVE, backoff_max=LIMIT, jitter=False, draw=0)
    wait = retry.delay(attempt, backoff=FIVE, backoff_max=LIMIT, jitter=True, draw=draw)
    assert timedelta(0) <= wait <= full
    assert abs(wait - full * draw) <= timedelta(microseconds=1)


def test_no_backoff_means_no_wait():
    assert retry.delay(9, backoff=timedelta(0), backoff_max=LIMIT, jitter=True, draw=0.9) == timedelta(0)
