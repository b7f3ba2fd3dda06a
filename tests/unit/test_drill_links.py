"""Links: what a broken one does to those at its ends."""

import contextlib
import socket
import threading
import time

import pytest

from drill import links


@pytest.fixture
def echo():
    """A link to a server that sends back what it gets."""

    def answer(client):
        with client, contextlib.suppress(OSError):
            while data := client.recv(1000):
                client.sendall(data)

    def accept():
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    link = links.Link(server.getsockname())
    yield link
    link.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def client(echo):
    with socket.create_connection(("127.0.0.1", echo.port), timeout=5) as made:
        assert says(made, b"before") == b"before"
        yield made


def says(client, text):
    client.sendall(text)
    return client.recv(1000)


def is_closed(client):
    """Whether the other end has closed it, politely or not."""
    try:
        return client.recv(1000) == b""
    except ConnectionError:
        return True


def test_a_cut_link_closes_what_is_open_and_what_is_opened(echo, client):
    with echo.cut():
        assert is_closed(client)
        with socket.create_connection(("127.0.0.1", echo.port), timeout=5) as late:
            assert is_closed(late)
    with socket.create_connection(("127.0.0.1", echo.port), timeout=5) as again:
        assert says(again, b"after") == b"after"


def test_a_silent_link_keeps_what_it_is_given_until_it_is_healed(echo, client):
    with echo.silent():
        client.sendall(b"within")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1000)
    client.settimeout(5)
    assert client.recv(1000) == b"within"


def test_a_silent_link_takes_connections_that_are_served_when_it_is_healed(echo):
    with echo.silent():
        made = socket.create_connection(("127.0.0.1", echo.port), timeout=5)
        made.sendall(b"hello")
    with made:
        assert made.recv(1000) == b"hello"


def test_a_slow_link_is_slow_both_ways(echo, client):
    with echo.slow(0.2):
        begin = time.monotonic()
        assert says(client, b"slowly") == b"slowly"
        assert time.monotonic() - begin >= 0.4
    taken = []
    for _ in range(5):
        begin = time.monotonic()
        assert says(client, b"quickly") == b"quickly"
        taken.append(time.monotonic() - begin)
    assert min(taken) < 0.4


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql+psycopg://postgres@/x?host=%2Ftmp%2Fpg&port=5432", "/tmp/pg/.s.PGSQL.5432"),
        ("postgresql+psycopg://a:b@db:5433/x", ("db", 5433)),
    ],
)
def test_a_link_to_postgresql_leads_to_its_socket_or_its_port(url, target):
    link, over = links.database(url)
    assert link.target == target
    assert f"127.0.0.1:{link.port}/x" in over
    link.close()


def test_a_link_to_a_server_keeps_its_credentials_and_its_path():
    link, over = links.server("amqp://guest:p%2F@rabbit/vhost")
    assert link.target == ("rabbit", 5672)
    assert over == f"amqp://guest:p%2F@127.0.0.1:{link.port}/vhost"
    link.close()
