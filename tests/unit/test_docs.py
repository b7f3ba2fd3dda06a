"""The documentation says what the code does."""

import base64
import importlib
import inspect
import re
import secrets
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from datetime import UTC, datetime
from pathlib import Path

import manifests
import pytest

from app import settings, states

TARGETS = ("debug.echo", "debug.fail", "debug.sleep", "http.request", "shell.run")
ROOT = Path(__file__).parent.parent.parent
GATEWAY = "deploy/gateway/punctual.conf.template"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


def test_every_setting_stands_in_the_table_and_nothing_else_does():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert table == list(settings.Settings.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_apps_that_are_shown_are_those_that_are_tested():
    shown = re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```", (ROOT / "docs/celery.md").read_text(), re.DOTALL)
    assert {name for name, _ in shown} == {"tests/strangers/caller.py", "tests/strangers/billing.py"}
    assert [name for name, source in shown if source != (ROOT / name).read_text()] == []


def test_the_diagram_of_a_runs_life_shows_each_allowed_move():
    drawn = set(re.findall(r"^ {4}(\w+) --> (\w+)", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    # a rescue moves a run to retrying or failed: nothing goes from running straight to pending
    allowed = {(source.value, to.value) for source, targets in states.MOVES.items() for to in targets}
    assert drawn == allowed


def test_the_chores_in_the_architecture_are_those_that_run():
    source = (ROOT / "beat/chores.py").read_text()
    running = dict(re.findall(r'Chore\(name="(\w+)", every=([\d.]+)', source))
    shown = re.findall(r"^\| `(\w+)` \| ([\d.]+) (s|h) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert {name: float(every) * (3600 if unit == "h" else 1) for name, every, unit in shown} == {
        name: float(every) for name, every in running.items()
    }


def test_the_readme_shows_the_page_of_every_document():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme] == []


def test_each_secret_has_its_line_in_the_runbook_and_nothing_else_has():
    section = (ROOT / "docs/operations.md").read_text().partition("\n## Rotating secrets\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w.-]+)`", row)]
    assert len(named) == len(set(named))
    of_settings = {
        name for name, field in settings.Settings.model_fields.items() if "SecretStr" in str(field.annotation)
    }
    sources = [ROOT / ".env.example", ROOT / "deploy/kubernetes/secrets.sh", *(ROOT / "deploy").glob("*.py")]
    text = " ".join(path.read_text() for path in sources)
    text += " ".join(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    of_files = set(re.findall(r"\b[A-Z][A-Z_]*(?:_PASSWORD|_KEY|_SECRET|_AUTH)(?:_SECOND)?\b", text))
    of_data = set(re.findall(r"""data / ["'](\w+_(?:password|key)|client\.env)["']""", text))
    of_gateway = set(re.findall(r"ssl_certificate\w* +\S+/([\w.]+);", (ROOT / GATEWAY).read_text()))
    of_clusters = {name for overlay in manifests.OVERLAYS for name in manifests.named_secrets(overlay)}
    # what secrets.sh makes holds what .env does
    of_clusters -= manifests.secrets().keys() | {"punctual-postgresql-ca"}
    wanted = {name.removesuffix("_SECOND") for name in of_settings | of_files} | of_data | of_gateway | of_clusters
    assert set(named) - wanted == {"PUNCTUAL_KEY", "OTEL_EXPORTER_OTLP_HEADERS"}
    assert wanted - set(named) == set()


def test_a_process_of_systemd_is_its_line_of_the_procfile(tmp_path):
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    path = ROOT / "deploy/systemd/punctual@.service"
    unit.read(path)
    service = unit["Service"]
    assert (service["Restart"], service["KillMode"]) == ("always", "mixed")
    assert int(service["TimeoutStopSec"]) >= 60
    (tmp_path / "Procfile").write_text('beat: printf %s wrong\nworker: printf %s "$0 ${HOST:-here}"\n')
    command = service["ExecStart"].replace("%i", "worker-2").replace("%%", "%").replace("$$", "$")
    done = subprocess.run(shlex.split(command), cwd=tmp_path, env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "/bin/sh here"
    if analyze := shutil.which("systemd-analyze"):
        started = tmp_path / "punctual@worker-2.service"
        started.write_text(path.read_text())
        checked = subprocess.run([analyze, "verify", started], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_permissions_that_are_shown_are_those_that_are_applied():
    page = (ROOT / "docs/security.md").read_text()
    quoted = re.findall(r"<!-- deploy/permissions/(\S+) -->\n```\w*\n(.*?)```", page, re.DOTALL)
    permissions = ROOT / "deploy/permissions"
    files = {path.name: path.read_text() for path in permissions.iterdir() if path.name != "kustomization.yaml"}
    assert {name for name, _ in quoted} == files.keys()
    assert [text for name, text in quoted if text not in files[name] and text.strip() not in files[name]] == []
    # and nobody's right is left out
    granting = {
        "postgresql.sql": r"^ +\('punctual_\w+', '[a-z]+', '.*",
        "users.acl": r"^user .*",
        "rabbitmq.sh": r'^(?:allow \w+|  "[^"]+") .*',
    }
    left_out = {
        name: [line for line in re.findall(rights, files[name], re.MULTILINE) if line not in page]
        for name, rights in granting.items()
    }
    assert left_out == {name: [] for name in granting}


def test_every_page_stands_in_the_table_of_the_pages():
    shown = re.findall(r"^\| `(/\S*)` \|", (ROOT / "docs/pages.md").read_text(), re.MULTILINE)
    sources = "".join(path.read_text() for path in (ROOT / "web/ui").glob("*.py"))
    assert set(shown) == set(re.findall(r'@blp\.(?:get|route)\("([^"]+)"', sources))


def test_the_kwargs_of_each_target_are_those_of_its_function():
    sections = re.split(r"^## `([\w.]+)`$", (ROOT / "docs/targets.md").read_text(), flags=re.MULTILINE)[1:]
    shown = {name: _rows(body) for name, body in zip(sections[::2], sections[1::2], strict=True)}
    assert shown == {name: _kwargs(name) for name in shown}
    assert sorted(shown) == sorted(TARGETS)


def _rows(section):
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", section, re.MULTILINE)
    return [(name, default == "required") for name, default in rows]


def _kwargs(target):
    module, function = target.split(".")
    run = getattr(importlib.import_module(f"workers.targets.{module}"), function).run
    parameters = [p for p in inspect.signature(run).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    return [(parameter.name, parameter.default is parameter.empty) for parameter in parameters]


def test_the_lines_that_verify_a_signature_do():
    from workers.targets import http  # noqa: PLC0415 - only after the environment stands

    [lines] = re.findall(r"<!-- verify -->\n```python\n(.+?)```", (ROOT / "docs/targets.md").read_text(), re.DOTALL)
    there = {}
    exec(lines, there)
    key = secrets.token_bytes(32)
    headers = http.sign((key,), "run", int(datetime.now(UTC).timestamp()), b"[1]")
    assert there["receive"](b"[1]", headers, "whsec_" + base64.b64encode(key).decode()) == [1]
    with pytest.raises(there["WebhookVerificationError"]):
        there["receive"](b"[2]", headers, "whsec_" + base64.b64encode(key).decode())
