"""What the environment may say, and how a mistake in it is told."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings, mail_server

ROOT = Path(__file__).parent.parent.parent
GIVEN = {
    "DATABASE_URL": "postgresql+psycopg://app:s3cret@db/punctual",
    "REDIS_URL": "redis://cache/0",
    "BROKER_URL": "amqp://app:s3cret@one//;amqp://app:s3cret@two//",
}


def test_defaults_stand_where_nothing_is_said():
    read = Settings.read(GIVEN)
    assert (read.PORT, read.PUNCTUAL_BUCKETS, read.PUNCTUAL_TASK_MODULES) == (8000, 16, ())


def test_an_empty_value_counts_as_not_given():
    assert Settings.read(GIVEN | {"PORT": ""}).PORT == 8000


def test_modules_are_listed_with_commas():
    assert Settings.read(GIVEN | {"PUNCTUAL_TASK_MODULES": "a, b.c,"}).PUNCTUAL_TASK_MODULES == ("a", "b.c")


def test_targets_of_other_apps_are_name_patterns_with_their_queues_and_the_first_that_fits_counts():
    read = Settings.read(GIVEN | {"PUNCTUAL_EXTERNAL_TARGETS": "billing.audit@audit, billing.*@billing,shop.?@celery"})
    assert read.external_queue("billing.audit") == "audit"
    assert read.external_queue("billing.charge") == "billing"
    assert read.external_queue("shop.a") == "celery"
    assert read.external_queue("shop.ab") is read.external_queue("Billing.charge") is None
    assert read.external_queues == {"audit", "billing", "celery"}
    assert Settings.read(GIVEN).external_queues == frozenset()


def test_a_setting_is_read_from_the_file_that_its_name_with_file_names(tmp_path):
    secret = tmp_path / "key"
    secret.write_text("from a file\n")
    read = Settings.read(GIVEN | {"PUNCTUAL_ADMIN_KEY_FILE": str(secret)})
    assert read.PUNCTUAL_ADMIN_KEY.get_secret_value() == "from a file"


def test_what_the_command_line_reads_does_not_keep_a_process_from_starting():
    Settings.read(GIVEN | {"PUNCTUAL_URL": "http://127.0.0.1:8000", "PUNCTUAL_KEY_FILE": "/run/secrets/key"})


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"PORT": "eighty"}, "PORT: Input should be a valid integer"),
        ({"PORT": "70000"}, "PORT: Input should be less than or equal to 65535"),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ({"DATABASE_URL": "sqlite:///x"}, "DATABASE_URL: must start with postgresql+psycopg://"),
        ({"DATABASE_URL": ""}, "DATABASE_URL: is required"),
        ({"PUNCTUAL_BUCKET": "8"}, "PUNCTUAL_BUCKET: there is no such setting"),
        ({"PUNCTUAL_EXTERNAL_TARGETS": "billing.*"}, "PUNCTUAL_EXTERNAL_TARGETS: 'billing.*' is not a name pattern @"),
        ({"PUNCTUAL_EXTERNAL_TARGETS": "a@b,*@c"}, "PUNCTUAL_EXTERNAL_TARGETS: '*@c' is not"),
        ({"PUNCTUAL_EXTERNAL_TARGETS": "punctual.*@b"}, "PUNCTUAL_EXTERNAL_TARGETS: 'punctual.*@b' is not"),
        ({"PUNCTUAL_EXTERNAL_TARGETS": "a.*@default"}, "PUNCTUAL_EXTERNAL_TARGETS: 'a.*@default' is not"),
        ({"PUNCTUAL_EXTERNAL_TARGETS": "a.*@punctual.x"}, "PUNCTUAL_EXTERNAL_TARGETS: 'a.*@punctual.x' is not"),
        ({"PUNCTUAL_SHELL": "perhaps"}, "PUNCTUAL_SHELL: Input should be a valid boolean"),
        ({"PUNCTUAL_WEBHOOK_SECRET": "s3cret"}, "PUNCTUAL_WEBHOOK_SECRET: must be whsec_ and 24 to 64 bytes"),
        ({"PUNCTUAL_WEBHOOK_SECRET": "whsec_c2hvcnQ="}, "PUNCTUAL_WEBHOOK_SECRET: must be whsec_ and 24 to 64 bytes"),
        ({"PUNCTUAL_WEBHOOK_SECRET": "whsec_" + 40 * "!"}, "PUNCTUAL_WEBHOOK_SECRET: must be whsec_ and 24"),
        ({"PUNCTUAL_NOTIFY_WEBHOOK": "ftp://hooks"}, "PUNCTUAL_NOTIFY_WEBHOOK: must be an address that begins with"),
        ({"PUNCTUAL_NOTIFY_WEBHOOK": "https://u:p@hooks"}, "PUNCTUAL_NOTIFY_WEBHOOK: must be an address that begins"),
        ({"PUNCTUAL_NOTIFY_EMAIL": "ops"}, "PUNCTUAL_NOTIFY_EMAIL: 'ops' is no address such as ops@example.com"),
        ({"PUNCTUAL_NOTIFY_EMAIL": "ops@a.b"}, "PUNCTUAL_NOTIFY_EMAIL: needs PUNCTUAL_SMTP_URL"),
        ({"PUNCTUAL_NOTIFY_ON": "failed,often"}, "PUNCTUAL_NOTIFY_ON.1: Input should be 'failed', 'late', 'missed'"),
        ({"PUNCTUAL_SMTP_URL": "smtps://mail"}, "PUNCTUAL_SMTP_URL: needs PUNCTUAL_MAIL_FROM"),
        ({"PUNCTUAL_SMTP_URL": "http://mail"}, "PUNCTUAL_SMTP_URL: must be smtp://host"),
        ({"PUNCTUAL_SMTP_URL": "smtp://mail:x"}, "PUNCTUAL_SMTP_URL: must be smtp://host"),
        ({"PUNCTUAL_SMTP_URL": "smtp://u:s3cret@mail"}, "PUNCTUAL_SMTP_URL: a password goes over smtps:// or"),
        ({"PUNCTUAL_MAIL_FROM": "Punctual <p@a.b>"}, "PUNCTUAL_MAIL_FROM: 'Punctual <p@a.b>' is no address"),
        ({"PUNCTUAL_PAGE_URL": "punctual.example.com"}, "PUNCTUAL_PAGE_URL: must be the address of the pages"),
        ({"SECRET_KEY_FILE": "/no/such/file"}, "SECRET_KEY_FILE: cannot be read"),
        ({"SECRET_KEY_FILE": "/no/such/file", "SECRET_KEY": "x"}, "SECRET_KEY: given twice, also as SECRET_KEY_FILE"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_the_setting(changed, line):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        Settings.read(GIVEN | changed)
    assert str(caught.value).startswith(line)


def test_a_secret_is_shown_neither_by_the_settings_nor_by_an_error():
    assert "s3cret" not in repr(Settings.read(GIVEN))
    with pytest.raises(ValueError, match="must start with") as caught:
        Settings.read(GIVEN | {"DATABASE_URL": "mysql://app:s3cret@db"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("smtp://mail", ("smtp", "mail", 25, None, "")),
        ("smtps://me%40x:p%2Fw@mail.example.com", ("smtps", "mail.example.com", 465, "me@x", "p/w")),
        ("smtp+starttls://u:p@[::1]:2525/", ("smtp+starttls", "::1", 2525, "u", "p")),
    ],
)
def test_the_mail_server_is_read_from_its_address_and_its_password_shown_nowhere(url, found):
    read = Settings.read(GIVEN | {"PUNCTUAL_SMTP_URL": url, "PUNCTUAL_MAIL_FROM": "punctual@example.com"})
    server = mail_server(read.PUNCTUAL_SMTP_URL)
    assert (server.scheme, server.host, server.port, server.user, server.password) == found
    assert url not in repr(read)
    assert "password" not in repr(server)


def test_keys_that_sign_are_separated_by_spaces_or_commas_and_shown_nowhere():
    secrets = ["whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in range(3)]
    read = Settings.read(GIVEN | {"PUNCTUAL_WEBHOOK_SECRET": f"{secrets[0]}, {secrets[1]} {secrets[2]}"})
    assert read.webhook_keys == (b"\x00" * 24, b"\x01" * 24, b"\x02" * 24)
    assert "whsec_" not in repr(read)
    assert Settings.read(GIVEN).webhook_keys == ()
    with pytest.raises(ValueError, match="must be whsec_") as caught:
        Settings.read(GIVEN | {"PUNCTUAL_WEBHOOK_SECRET": f"{secrets[0]} s3cret"})
    assert "s3cret" not in str(caught.value)
    assert secrets[0] not in str(caught.value)


@pytest.mark.parametrize("module", ["beat.main", "workers.main", "web.main"])
def test_a_process_ends_at_start_with_one_clear_line(module):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | GIVEN | {"PORT": "eighty"}
    code = f"import importlib; importlib.import_module('{module}').__dict__.get('app')"
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("punctual: PORT: ")
    assert ended.stderr.count("\n") == 1


ON_A_TEST = GIVEN | {"DATABASE_URL": "postgresql+psycopg://db/punctual_drill_1"}


def test_a_fail_point_is_taken_on_a_drills_database():
    assert Settings.read(ON_A_TEST | {"PUNCTUAL_FAIL_POINT": "fired:2:pause=1.5"}).PUNCTUAL_FAIL_POINT


def test_a_fail_point_is_refused_in_production():
    with pytest.raises(ValueError, match=r"^PUNCTUAL_FAIL_POINT: .* drill's or a test's$"):
        Settings.read(GIVEN | {"PUNCTUAL_FAIL_POINT": "fired:2:kill"})


@pytest.mark.parametrize("text", ["fired", "fired:0:kill", "elsewhere:1:kill", "fired:1:explode", "fired:1:pause="])
def test_a_fail_point_that_names_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"^PUNCTUAL_FAIL_POINT: must be POINT:NTH:kill"):
        Settings.read(ON_A_TEST | {"PUNCTUAL_FAIL_POINT": text})
