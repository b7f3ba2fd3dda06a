"""What is written down for deployment fits together: Procfile, compose file, image, pinned requirements."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from app import models
from app.settings import Settings
from deploy import postgresql, processes

ROOT = Path(__file__).parent.parent.parent
PROCFILE = dict(re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "punctual"}
FLOWERS_OWN = {"FLOWER_BASIC_AUTH"}
NOT_ROOTS = {"punctual", "punctual-backup", "nginxinc/nginx-unprivileged", "prom/prometheus", "grafana/grafana"}
"""Images that name another user themselves."""

LOGIN = re.compile(r"//(?:\$\{\w+:-)?(\w+)\}?:\$\{(\w+):\?[^}]*\}@")
FILES = {"DATABASE_URL": "postgresql.sql", "REDIS_URL": "users.acl", "BROKER_URL": "rabbitmq.sh"}
STORES = {
    "DATABASE_URL": re.compile(r"^ +\('(punctual_\w+)', \d+, '\w+', NULL\)", re.MULTILINE),
    "REDIS_URL": re.compile(r"^user (punctual_\w+)", re.MULTILINE),
    "BROKER_URL": re.compile(r"^allow (\w+)", re.MULTILINE),
}
"""Of each store, how its file makes a user."""


def pins(name):
    """The packages that a compiled file pins, with their versions."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def without_options(command):
    return [word for word in shlex.split(command) if not re.match(r"--[\w-]+=", word)]


def test_the_procfile_names_the_five_processes():
    assert list(PROCFILE) == ["web", "beat", "worker", "flower", "release"]


def test_the_compose_file_is_what_compose_takes():
    jsonschema.validate(COMPOSE, yaml.safe_load((Path(__file__).parent / "compose_schema.yaml").read_text()))
    for service in COMPOSE["services"].values():
        assert service.get("healthcheck", {}).get("test", ["CMD"])[0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", OURS)
def test_a_container_runs_a_line_of_the_procfile_but_for_options(name):
    line = PROCFILE[name.rstrip("0123456789")]
    assert without_options(OURS[name]["command"]) == without_options(line)


def test_each_process_of_the_procfile_has_a_container():
    assert {name.rstrip("0123456789") for name in OURS} == PROCFILE.keys()


@pytest.mark.parametrize("name", OURS)
def test_a_container_is_given_only_settings_that_exist(name):
    assert OURS[name]["environment"].keys() - FLOWERS_OWN <= Settings.model_fields.keys()


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_starts_when_what_it_needs_is_there(name):
    needs = COMPOSE["services"][name].get("depends_on", {})
    for needed, when in needs.items():
        service = COMPOSE["services"][needed]
        ends = service.get("restart") == "no"
        assert when["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        assert ends or "healthcheck" in service


@pytest.mark.parametrize("name", ["web1", "web2", "beat", "worker", "flower"])
def test_a_process_waits_until_its_stores_answer_and_open_to_it(name):
    assert OURS[name]["depends_on"].keys() == {
        "postgres",
        "redis",
        "rabbitmq",
        "postgres-permissions",
        "rabbitmq-permissions",
    }


def test_the_owner_is_there_before_the_release_and_what_it_made_is_opened_after_it():
    before, after = (COMPOSE["services"][f"postgres-{name}"] for name in ("roles", "permissions"))
    assert OURS["release"]["depends_on"].keys() == {"postgres-roles"}
    assert after["depends_on"].keys() == {"release"}
    assert {name: before[name] for name in before if name != "depends_on"} == {
        name: after[name] for name in after if name != "depends_on"
    }


def test_each_process_logs_in_with_its_own_users_and_password():
    logins = {name: login(service["environment"]) for name, service in OURS.items()}
    own = {
        name: {("punctual_" + name.rstrip("12"), name.rstrip("12").upper() + "_PASSWORD")}
        for name in ("web1", "web2", "beat", "worker")
    }
    assert logins == own | {
        "flower": {("punctual_flower", "FLOWER_BROKER_PASSWORD")},
        "release": {("punctual_owner", "OWNER_PASSWORD")},
    }


def login(environment):
    """Whom a container logs in as, and with which password: at all of the stores that it logs in at."""
    urls = (environment[name] for name in ("DATABASE_URL", "REDIS_URL", "BROKER_URL"))
    return {found for url in urls for found in LOGIN.findall(url)}


@pytest.mark.parametrize("setting", STORES)
def test_whoever_logs_in_at_a_store_is_made_by_the_file_for_it(setting):
    urls = [service["environment"].get(setting, "") for service in (*OURS.values(), COMPOSE["services"]["backup"])]
    users = {user for url in urls for user, _ in LOGIN.findall(url)}
    assert users == set(STORES[setting].findall(permissions(FILES[setting])))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("postgres-roles", {"postgresql.sql"}),
        ("redis", {"redis.sh", "users.acl"}),
        ("rabbitmq-permissions", {"rabbitmq.sh"}),
    ],
)
def test_the_files_of_permissions_are_applied_with_each_password_that_they_ask_for(name, files):
    service = COMPOSE["services"][name]
    assert "./deploy/permissions:/permissions:ro" in service["volumes"]
    named = set(re.findall(r"/permissions/([\w.]+)", str(service["command"])))
    assert named == files - {"users.acl"}
    asked = {word for file in files for word in re.findall(r"\b[A-Z_]+_PASSWORD(?:_SECOND)?\b", permissions(file))}
    given = service["environment"]
    assert {word: given[word] for word in asked} == {
        word: f"${{{word}:-}}" if word.endswith("_SECOND") else f"${{{word}:?set it in .env}}" for word in asked
    }


def test_a_process_logs_in_by_another_name_where_its_password_is_replaced():
    for name in ("WEB", "BEAT", "WORKER"):
        process = OURS.get(name.lower()) or OURS[f"{name.lower()}1"]
        user = f"//${{{name}_USER:-punctual_{name.lower()}}}:"
        assert user in process["environment"]["DATABASE_URL"]
        assert user in process["environment"]["BROKER_URL"]
        assert user not in process["environment"]["REDIS_URL"]  # whose users have two passwords


RABBITMQCTL = """#!/bin/sh
shift  # --quiet
case $1 in
  list_users) printf 'user\\ttags\\npunctual_web\\t[]\\npunctual_beat_second\\t[]\\n' ;;
  add_user | change_password) read -r password && echo "$*" "$password" >>"$CALLS" ;;
  *) echo "$*" >>"$CALLS" ;;
esac
"""
"""Stands where rabbitmqctl stands, and keeps what it is called with."""


def test_a_second_name_at_rabbitmq_may_do_what_the_first_may_and_goes_with_its_password(tmp_path):
    (tmp_path / "rabbitmqctl").write_text(RABBITMQCTL)
    (tmp_path / "rabbitmqctl").chmod(0o755)
    passwords = {f"{name}_PASSWORD": name.lower() for name in ("WEB", "BEAT", "WORKER", "FLOWER_BROKER")}
    passwords |= {"WEB_PASSWORD_SECOND": "new", "BEAT_PASSWORD_SECOND": ""}
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")} | passwords
    subprocess.run(["sh", ROOT / "deploy/permissions/rabbitmq.sh"], env=env, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if not call.startswith("set_permissions")] == [
        "change_password punctual_web web",
        "add_user punctual_web_second new",
        "add_user punctual_beat beat",
        "delete_user punctual_beat_second",
        "add_user punctual_worker worker",
        "add_user punctual_flower flower_broker",
    ]
    given = {call.split()[3]: call.split()[4:] for call in calls if call.startswith("set_permissions")}
    assert given["punctual_web_second"] == given["punctual_web"]
    assert len(given) == 5


def permissions(file):
    return (ROOT / "deploy/permissions" / file).read_text()


def test_each_table_is_somebodys_and_each_column_of_a_run_is_changed_by_its_mover_or_by_nobody():
    text = re.sub(r"'\s+'", "", permissions("postgresql.sql"))
    rights = re.findall(r"\('punctual_\w+', '(\w+)', '([^']+)'\)", text)
    assert models.Base.metadata.tables.keys() <= {table for table, _ in rights}
    changed = {
        column
        for table, may in rights
        for columns in re.findall(r"UPDATE \((.*?)\)", may)
        for column in columns.split(", ")
        if table == "runs"
    }
    fixed = {"id", "task_id", "scheduled_for", "task_name", "target", "queue", "trigger", "missed", "args", "kwargs"}
    assert changed == set(models.Run.__table__.columns.keys()) - fixed - {"fired_at"}


def test_the_example_of_secrets_names_each_that_compose_requires():
    required = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    example = re.findall(r"^(\w+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert set(example) == required


def test_the_image_copies_only_what_its_context_holds():
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(allowed)
    assert [path for path in copied if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["main", "local", "test"])
def test_every_pin_has_hashes_and_no_address(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    assert "--find-links" not in text
    assert [
        block for block in re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:] if "--hash=sha256:" not in block
    ] == []


def test_what_is_tested_is_what_is_run():
    assert pins("main").items() <= pins("local").items() <= pins("test").items()


def test_what_is_asked_for_is_pinned():
    for name in ("main", "local", "test"):
        asked = re.findall(r"^([\w.-]+)", (ROOT / "requirements" / f"{name}.in").read_text(), re.MULTILINE)
        assert {package for package in asked if not package.startswith("-")} <= pins(name).keys()


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        ("/srv/punctual/.data/postgresql", True),
        ("/srv/" + 79 * "d", True),
        ("/srv/" + 80 * "d", False),
        ("/srv/two words", False),  # would have to be quoted in too many places
        ("/srv/a,b", False),  # two hosts, to libpq
        ("/srv/a:b", False),  # a host and its port, to SQLAlchemy
        ("/srv/é", False),
    ],
)
def test_a_socket_is_put_where_its_path_is_short_and_plain(path, fits):
    assert postgresql._takes_socket(Path(path)) == fits


def test_the_socket_of_a_person_is_reached_by_its_url():
    url = postgresql._url(Path("/srv/punctual/.data/postgresql"))
    assert url == "postgresql+psycopg://postgres@/punctual?host=%2Fsrv%2Fpunctual%2F.data%2Fpostgresql&port=5432"


def test_a_secret_is_made_once_and_is_its_owners_alone(tmp_path):
    made = processes.secret(tmp_path / "key")
    assert len(made) > 40
    assert processes.secret(tmp_path / "key") == made
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken_is_not_free():
    taken = processes.free_port()
    assert processes.free_port(wanted=taken) == taken
    with processes.socket.create_server(("127.0.0.1", taken)):
        assert processes.free_port(wanted=taken) != taken


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_is_bounded_writes_its_volumes_alone_and_runs_as_nobody_of_rank(name):
    service = COMPOSE["services"][name]
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("user") not in {"root", "0"}
    assert "user" in service or service["image"].partition(":")[0] in NOT_ROOTS


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_that_goes_on_is_looked_at_and_started_again(name):
    service = COMPOSE["services"][name]
    ends = service.get("restart") == "no"
    assert ends or (service["restart"], bool(service["healthcheck"]["test"])) == ("unless-stopped", True)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_container_but_the_gateway_is_open_to_other_machines(name):
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("${GATEWAY_ADDRESS:-127.0.0.1}" if name == "gateway" else "127.0.0.1:")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_is_asked_for_its_health_at_a_port_that_it_listens_on(name):
    service = COMPOSE["services"][name]
    asked = set(re.findall(r"http://127\.0\.0\.1:(\d+)", str(service.get("healthcheck"))))
    published = {port.rpartition(":")[2] for port in service.get("ports", [])}
    assert asked <= published | ({str(Settings.model_fields["PORT"].default)} if name in ("web1", "web2") else set())


def test_of_what_may_die_there_are_two():
    assert {"web1", "web2"} <= OURS.keys()
    assert COMPOSE["services"]["gateway"]["depends_on"].keys() == {"web1", "web2"}
    assert OURS["beat"]["deploy"]["replicas"] == 2


def test_workers_serve_runs_and_the_calls_of_other_apps():
    from app import broker, messages  # noqa: PLC0415 - they read settings, which a test run alone has not

    served = {queue.name for queue in broker.celery_app.conf.task_queues}
    assert served == {messages.DEFAULT_QUEUE, messages.CALLS_QUEUE}
    assert "-Q" not in OURS["worker"]["command"]


def test_who_does_not_ask_for_them_gets_no_prometheus_and_no_grafana():
    profiles = {name: service["profiles"] for name, service in COMPOSE["services"].items() if "profiles" in service}
    assert profiles == {"prometheus": ["monitoring"], "grafana": ["monitoring"]}


def test_each_variable_is_a_setting_or_stands_in_the_example_and_none_stands_there_for_nothing():
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    shown = set(re.findall(r"^(?:# )?([A-Z_0-9]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used - Settings.model_fields.keys() <= shown <= used


def test_the_runbook_names_containers_and_programs_that_are_there():
    page = (ROOT / "docs/operations.md").read_text().replace("\\\n", " ")
    one = re.findall(r"docker compose (?:run|exec|kill|cp) ([^\n`]*)", page)
    assert len(one) >= 8
    assert [words for words in one if not COMPOSE["services"].keys() & set(re.split(r"[ :]", words))] == []
    [stopped] = re.findall(r"docker compose stop ([^\n`]*)", page)
    assert set(stopped.split()) == OURS.keys() - {"release"} | {"gateway", "backup"}
    [restarted] = re.findall(r"for process in ([^;]*); do", page)
    assert set(restarted.split()) == OURS.keys() - {"release", "flower"}
    programs = set(re.findall(r"python -m (deploy\.\w+)", page))
    assert programs == {"deploy.backup", "deploy.restore"}
    volumes = set(re.findall(r"the volume `(\w+)`", page))
    assert {"backups", "tls"} <= volumes <= COMPOSE["volumes"].keys()


def test_a_backup_is_made_by_an_image_that_has_all_that_it_takes():
    backup = COMPOSE["services"]["backup"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert backup["build"] == {"context": ".", "target": "backup"}
    [stage] = re.findall(r"^FROM processes AS backup\n(.*?)(?=^FROM)", dockerfile, re.MULTILINE | re.DOTALL)
    [client] = re.findall(r"postgresql-client-(\d+)", stage)
    [server] = re.findall(r"postgres:(\d+)", COMPOSE["services"]["postgres"]["image"])
    assert int(client) >= int(server)
    [(volume, folder)] = [volume.split(":") for volume in backup["volumes"]]
    assert volume in COMPOSE["volumes"]
    user = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert len(set(user)) == 1
    # a volume takes over whose the folder of the image is
    assert f"--owner={user[0][0]} --group={user[0][1]} --mode=0700 {folder}" in stage
    program, *options = shlex.split(backup["command"])[2:]
    help_ = subprocess.run(
        [sys.executable, "-m", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert options[0] == folder
    assert [option for option in options[1:] if option.partition("=")[0] not in help_.stdout] == []
    assert LOGIN.findall(backup["environment"]["DATABASE_URL"]) == [("punctual_backup", "BACKUP_PASSWORD")]


def test_what_the_image_backs_up_and_restores_with_is_pinned_for_it():
    lines = (
        "import sys, importlib.metadata as found; before = set(sys.modules)",
        "import deploy.backup, deploy.restore; names = found.packages_distributions()",
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}",
        "print(*{each for top in tops for each in names.get(top, ())})",
    )
    done = subprocess.run(
        [sys.executable, "-c", "; ".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {re.sub(r"[-_.]+", "-", name).lower() for name in done.stdout.split()}
    assert {"psycopg", "sqlalchemy"} <= loaded <= {name.lower() for name in pins("main")}


@pytest.mark.parametrize(("age", "healthy"), [(None, False), (25, True), (27, False)])
def test_a_backup_that_is_missing_shows(tmp_path, age, healthy):
    probe = COMPOSE["services"]["backup"]["healthcheck"]["test"][3].replace("/backups", str(tmp_path))
    if age is not None:
        made = tmp_path / "punctual-20261128T020000Z/manifest.json"
        made.parent.mkdir()
        made.touch()
        os.utime(made, (time.time() - age * 3600,) * 2)
    assert (subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0) is healthy


def test_what_the_gateway_is_given_is_what_its_configuration_asks_for():
    asked = set(re.findall(r"\$\{(GATEWAY_\w+)\}", (ROOT / "deploy/gateway/punctual.conf.template").read_text()))
    asked |= set(re.findall(r"\bGATEWAY_\w+", (ROOT / "deploy/gateway/certificate.sh").read_text()))
    given = COMPOSE["services"]["gateway"]["environment"]
    assert asked == given.keys() - {"NGINX_ENVSUBST_FILTER"}
    assert {given["GATEWAY_WEB1"], given["GATEWAY_WEB2"]} == {"web1:8000", "web2:8000"}
    assert OURS["web1"]["environment"]["PUNCTUAL_TRUSTED_PROXIES"] == 1


def test_the_gateway_makes_a_certificate_where_it_has_none_and_leaves_one_alone(tmp_path):
    env = os.environ | {"GATEWAY_TLS": str(tmp_path), "GATEWAY_NAME": "punctual.example.com"}
    for _ in range(2):
        subprocess.run([ROOT / "deploy/gateway/certificate.sh"], env=env, check=True, capture_output=True)
        made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert made.keys() == {"fullchain.pem", "key.pem"}
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", tmp_path / "fullchain.pem"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "DNS:punctual.example.com" in shown.stdout


def test_prometheus_asks_each_process_where_it_answers():
    scraped = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"]
    ports = {name: job["dns_sd_configs"][0]["port"] for job in scraped for name in job["dns_sd_configs"][0]["names"]}
    assert ports == {
        "web1": 8000,
        "web2": 8000,
        "beat": OURS["beat"]["environment"]["PUNCTUAL_METRICS_PORT"],
        "worker": OURS["worker"]["environment"]["PUNCTUAL_METRICS_PORT"],
    }


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_file_that_a_container_mounts_is_there(name):
    for volume in COMPOSE["services"][name].get("volumes", []):
        source = volume.partition(":")[0]
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
