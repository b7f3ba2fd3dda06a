"""What is shown of arguments holds no secret, and all else as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.masking import MASK, masked

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "Passwd",
        "db_pwd",
        "client_secret",
        "access_token",
        "TOKEN",
        "Authorization",
        "X-Api-Key",
        "apiKey",
        "api_key",
        "private_key",
        "aws_secret_access_key",
        "Set-Cookie",
        "auth",
        "key",
        "webhook_signature",
        "credentials",
        "passphrase",
    ],
)
def test_what_is_named_like_a_secret_is_masked_wherever_it_lies(name):
    for value in (SECRET, 5, [SECRET], {"inner": SECRET}):
        assert masked({"deep": [{name: value}]}) == {"deep": [{name: MASK}]}
    assert masked({name: None, "n": 1}) == {name: None, "n": 1}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:s3cr3t@example.com/x", "https://***@example.com/x"),
        ("https://example.com/?a=1&token=s3cr3t&b=2", "https://example.com/?a=1&token=***&b=2"),
        ("https://example.com/?api_key=s3cr3t#top", "https://example.com/?api_key=***#top"),
        ("Bearer s3cr3t", "Bearer ***"),
        ("call it with basic s3cr3t please", "call it with basic *** please"),
        ("amqp://guest:s3cr3t@host/", "amqp://***@host/"),
        ("someone@example.com", "someone@example.com"),
        ("https://example.com/a?b=c", "https://example.com/a?b=c"),
    ],
)
def test_a_text_is_shown_without_the_secrets_in_it(text, shown):
    assert masked({"text": text}) == {"text": shown}
    assert masked([text]) == [shown]


@pytest.mark.parametrize("name", ["monkey", "keyboard", "author", "bypass", "count", "url", "keys", "turkey"])
def test_what_only_sounds_like_one_is_shown(name):
    assert masked({name: "seen"}) == {name: "seen"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc ", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
)


@given(JSON)
def test_what_holds_no_secret_is_shown_as_it_is(value):
    assert masked(value) == value
