"""Which runs are traced: the same in every process, without a word between them."""

from uuid import uuid4, uuid5

import pytest

from app import traces


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_as_many_runs_are_traced_as_the_share_says_whatever_kind_of_id_they_have(share, monkeypatch):
    monkeypatch.setattr(traces, "_share", lambda: share)
    task = uuid4()
    for ids in ([uuid4() for _ in range(4000)], [uuid5(task, str(number)) for number in range(4000)]):
        assert sum(map(traces.is_sampled, ids)) / len(ids) == pytest.approx(share, abs=0.05)
