"""Whom the bell's client logs in as."""

import pytest

from app import bell, settings


@pytest.fixture
def connect(monkeypatch):
    """A client for an address of Redis; it connects to nobody."""

    def to(url):
        monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://database/punctual")
        monkeypatch.setenv("BROKER_URL", "amqp://rabbitmq")
        monkeypatch.setenv("REDIS_URL", url)
        settings.load.cache_clear()
        return bell.connect().connection_pool.connection_kwargs

    yield to
    settings.load.cache_clear()


@pytest.mark.parametrize(
    ("url", "user", "password"),
    [
        ("redis://punctual_web:secret@redis:6379/0", "punctual_web", "secret"),
        ("redis-sentinel://punctual_web:secret@one:1,two:2/main/0", "punctual_web", "secret"),
        ("redis-sentinel://:secret@one:1,two:2/main/0", None, "secret"),
        ("redis-sentinel://one:1,two:2/main/0", None, None),
    ],
)
def test_a_client_logs_in_as_its_address_says(connect, url, user, password):
    options = connect(url)
    assert (options.get("username"), options.get("password")) == (user, password)
