"""Which URLs and addresses `http.request` may reach, and how it signs. No connection is made here."""

import base64
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from workers.targets import http
from workers.targets.gate import AddressRefused, UrlRefused, check, parse

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%eth0",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address):
    with pytest.raises(AddressRefused):
        check(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450::1"]
)
def test_a_public_address_is_not(address):
    check(address)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.com/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("gopher://example.com:70/_x", "must begin with http"),
        ("unix:///run/docker.sock", "must begin with http"),
        ("http+unix://%2Frun%2Fdocker.sock/", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"),
        ("//example.com/", "must begin with http"),
        ("example.com", "must begin with http"),
        ("", "must begin with http"),
        ("http:///path", "must name a host"),
        ("http://example.com:0/", "a port from 1"),
        ("http://user:word@example.com/", "may not hold credentials"),
        ("http://example.com@127.0.0.1/", "may not hold credentials"),
        ("http://127.0.0.1\\@example.com/", "cannot be read|may not hold"),
        ("http://example.com:99999/", "a port from 1"),
        ("http://example.com:-1/", "a port from 1"),
        ("http://example.com/\r\nX-Mine: 1", "cannot be read"),
        ("http://exa\0mple.com/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
        ("http://[fe80::1%25eth0]/", "without %"),
        ("http://%31%32%37.0.0.1/", "without %"),
        ("http:127.0.0.1/", "must name a host"),
        ("http:/\\127.0.0.1/", "must name a host"),
        ("http://0177.0.0.1/", "cannot be read"),
        ("http://\u2488.example/", "cannot be read"),
        (5, "cannot be read"),
    ],
)
def test_a_url_that_is_not_called_is_told_why(url, says):
    with pytest.raises(UrlRefused, match=says):
        parse(url)


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"x" * 32).decode()


def key(secret):
    return base64.b64decode(secret.removeprefix("whsec_"))


@pytest.mark.parametrize("content", [b'{"test": 2432232314}', "é\n".encode(), b""])
def test_a_signature_is_the_official_librarys(content):
    now = datetime.now(UTC).replace(microsecond=0)
    headers = http.sign((key(SECRET),), "msg_p5jXN8AQM9LWM0D4loKWxJek", int(now.timestamp()), content)
    assert headers["webhook-signature"] == Webhook(SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", now, content.decode())


def test_while_a_secret_is_replaced_both_the_old_and_the_new_one_verify():
    headers = http.sign((key(SECRET), key(OTHER)), "run", int(datetime.now(UTC).timestamp()), b"{}")
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(b"{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"y" * 32).decode()).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b"[]", headers)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"url": 5}, "must be strings"),
        ({"method": None}, "must be strings"),
        ({"body": {"a": 1}}, "goes into json"),
        ({"body": "x", "json": 1}, "not both"),
        ({"expect": 200}, "array of statuses"),
        ({"expect": ["200"]}, "array of statuses"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": -1}, "above 0"),
        ({"timeout": "5"}, "above 0"),
        ({"timeout": True}, "above 0"),
        ({"timeout": 1e300}, "86400 at most"),
        ({"headers": ["X-Mine"]}, "object of strings"),
        ({"headers": {"X-Mine": 1}}, "object of strings"),
        ({"headers": {"idempotency-KEY": "x"}}, "may not set idempotency-KEY"),
        ({"headers": {"Webhook-Id": "x", "webhook-timestamp": "1"}}, "may not set Webhook-Id, webhook-timestamp"),
        ({"headers": {"webhook-signature": "v1,x"}}, "may not set webhook-signature"),
    ],
)
def test_arguments_that_cannot_be_sent_are_told_why(given, says):
    with pytest.raises((ValueError, TypeError), match=says):
        http.request.run(**{"url": "http://example.com/"} | given)
