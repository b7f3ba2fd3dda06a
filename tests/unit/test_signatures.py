"""What a target takes, and what of a task's arguments does not fit it."""

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import signatures


def charge(customer, amount: float, currency: "str" = "EUR", *, note=None):
    pass


def anything(*args, **kwargs):
    pass


def nothing():
    pass


def mixed(place, /, where, *rest, must, may=1):
    pass


def parameters(function):
    return signatures.describe(function)[1]


def test_a_signature_is_described_as_text_and_as_json():
    text, described = signatures.describe(charge)
    assert text == "(customer, amount: float, currency: 'str' = 'EUR', *, note=None)"
    assert json.loads(json.dumps(described)) == [
        {"name": "customer", "kind": "positional_or_keyword", "default": None, "annotation": None},
        {"name": "amount", "kind": "positional_or_keyword", "default": None, "annotation": "float"},
        {"name": "currency", "kind": "positional_or_keyword", "default": "'EUR'", "annotation": "str"},
        {"name": "note", "kind": "keyword_only", "default": "None", "annotation": None},
    ]


def test_the_kinds_are_pythons_own():
    assert {parameter["kind"] for function in (mixed, anything) for parameter in parameters(function)} == set(
        signatures.KINDS
    )


class Sulking:
    def __repr__(self):
        raise RuntimeError("no")


def test_a_function_that_python_cannot_read_is_known_without_its_parameters():
    assert signatures.describe(type) == ("(...)", None)
    assert signatures.describe(lambda a=Sulking(): a) == ("(...)", None)  # noqa: B008


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "says"),
    [
        (charge, [1, 2], {}, {}),
        (charge, [], {"customer": 1, "amount": 2, "note": "x"}, {}),
        (anything, [1, 2, 3], {"a": 1}, {}),
        (mixed, [1, 2, 3, 4], {"must": 1}, {}),
        (charge, [], {}, {"kwargs": {"customer": ["charge needs it."], "amount": ["charge needs it."]}}),
        (charge, [1], {}, {"kwargs": {"amount": ["charge needs it."]}}),
        (charge, [1, 2, "EUR", 4], {}, {"args": ["charge takes 3, 4 are given."]}),
        (charge, [1, 2], {"customer": 3}, {"kwargs": {"customer": ["It is given twice: args hold it too."]}}),
        (
            charge,
            [1, 2],
            {"curency": "USD"},
            {"kwargs": {"curency": ["charge does not take it. Did you mean currency?"]}},
        ),
        (
            charge,
            [1, 2],
            {"zzz": 1},
            {"kwargs": {"zzz": ["charge does not take it. It takes customer, amount, currency, note."]}},
        ),
        (nothing, [1], {}, {"args": ["nothing takes none, 1 are given."]}),
        (nothing, [], {"a": 1}, {"kwargs": {"a": ["nothing does not take it."]}}),
        (
            mixed,
            [],
            {"where": 1},
            {"args": ["mixed needs place, by position."], "kwargs": {"must": ["mixed needs it."]}},
        ),
        (
            mixed,
            [1],
            {"where": 1, "must": 1, "place": 1},
            {"kwargs": {"place": ["mixed does not take it. It takes where, must, may."]}},
        ),
    ],
)
def test_what_does_not_fit_is_said_by_name(function, args, kwargs, says):
    assert signatures.misfits(function.__name__, parameters(function), args, kwargs) == says


NAMES = ["customer", "amount", "currency", "note", "place", "where", "must", "may", "other"]


@given(
    function=st.sampled_from([charge, anything, nothing, mixed]),
    args=st.lists(st.none(), max_size=5),
    names=st.lists(st.sampled_from(NAMES), unique=True),
)
def test_arguments_fit_exactly_where_python_could_bind_them(function, args, names):
    kwargs = dict.fromkeys(names)
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        fits = False
    else:
        fits = True
    assert (signatures.misfits("t", parameters(function), args, kwargs) == {}) is fits
