"""The manifests for Kubernetes: built as kustomize builds them, held against schemas, the code and compose's file.

They are never applied here."""

import base64
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import (
    BUILT,
    KUBERNETES,
    OVERLAYS,
    PROCESSES,
    ROOT,
    environment,
    everywhere,
    find,
    make_secrets,
    ours,
    secret,
    secret_keys,
    secrets,
    walk,
)

from app.settings import Settings

CUSTOM = yaml.safe_load((Path(__file__).parent / "custom_kinds.yaml").read_text())
TYPES = {"int": "integer", "str": "string", "bool": "boolean"}
PROCFILE = dict(re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE))
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that the manifests can be used with, and the newest that there is a schema of."""

OPERATORS_SECRETS = {"punctual-postgresql-ca", "punctual-postgresql-superuser", "punctual-rabbitmq-erlang-cookie"}
PLACEHOLDER = re.compile(r"\$\{(\w+):-([^}]*)\}")


@everywhere
def test_they_are_built_here_as_kustomize_builds_them(overlay):
    kubectl, alone = shutil.which("kubectl"), shutil.which("kustomize")
    command = [alone, "build"] if alone else [kubectl, "kustomize"]
    if not command[0]:
        pytest.skip("needs kustomize, or kubectl, which has it within")
    built = subprocess.run([*command, KUBERNETES / "overlays" / overlay], check=True, capture_output=True, text=True)
    generated = {each["metadata"]["name"] for each in BUILT[overlay] if each["kind"] == "ConfigMap"}
    text = re.sub(rf"\b({'|'.join(generated)})-[a-z0-9]{{10}}\b", r"\1", built.stdout)
    assert _sorted(yaml.safe_load_all(text)) == _sorted(BUILT[overlay])


def _sorted(manifests):
    return sorted(manifests, key=lambda each: (each["kind"], each["metadata"]["name"]))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_manifest_is_what_kubernetes_takes(version):
    small, production = ([each for each in BUILT[name] if each["kind"] not in CUSTOM] for name in OVERLAYS)
    own = [*small, *(each for each in production if each not in small), *secrets().values()]
    assert len(own) > 40
    for each in own:
        kubernetes_validate.validate(each, version, strict=True)


@everywhere
def test_each_manifest_of_an_operator_has_only_fields_that_it_knows(overlay):
    own = [each for each in BUILT[overlay] if each["kind"] in CUSTOM]
    assert len(own) > 5
    for each in own:
        wanted = CUSTOM[each["kind"]]
        assert each["apiVersion"] == wanted["apiVersion"]
        jsonschema.validate(each["spec"], _schema(wanted["spec"]))


def _schema(wanted):
    if wanted == "any":
        return {}
    if isinstance(wanted, str):
        return {"type": TYPES[wanted]}
    if isinstance(wanted, list):
        return {"type": "array", "items": _schema(wanted[0])}
    inside = {name: _schema(each) for name, each in wanted.items()}
    return {"type": "object", "properties": inside, "additionalProperties": False}


@everywhere
def test_all_but_machines_lies_in_one_namespace(overlay):
    lies = {each["kind"]: each["metadata"].get("namespace") for each in BUILT[overlay]}
    everybodys = {"Namespace", "NodePool", "EC2NodeClass"}
    assert {space for kind, space in lies.items() if kind not in everybodys} == {"punctual"}
    assert {space for kind, space in lies.items() if kind in everybodys} == {None}


@pytest.mark.parametrize("process", PROCFILE)
@everywhere
def test_each_process_runs_its_line_of_the_procfile_but_for_options(overlay, process):
    _, container = ours(overlay)[process]
    line = PLACEHOLDER.sub(r"\2", PROCFILE[process])
    assert _without_options(container["command"]) == _without_options(shlex.split(line))


def _without_options(words):
    return [word for word in words if not re.match(r"--[\w-]+=", word)]


@everywhere
def test_processes_are_given_only_settings_that_exist_and_each_can_be_read(overlay, tmp_path):
    shared = find(overlay, "ConfigMap", "punctual-settings")["data"]
    for name, (pod, container) in ours(overlay).items():
        given = shared | environment(container)
        given.pop("FLOWER_BASIC_AUTH", None)  # Flower's own
        for setting, path in list(given.items()):
            if setting.endswith("_FILE"):
                given[setting] = str(tmp_path / name / setting)
                Path(given[setting]).parent.mkdir(exist_ok=True)
                Path(given[setting]).write_text(_file(pod, container, path))
        assert {setting.removesuffix("_FILE") for setting in given} <= Settings.model_fields.keys()
        read = Settings.read(given)
        assert not read.PUNCTUAL_FAIL_POINT
        assert read.PUNCTUAL_SMTP_URL is None  # what .env does not say is not set
        if name in ("web", "beat", "worker"):
            assert f"//punctual_{name}:" in read.DATABASE_URL.get_secret_value()


def _file(pod, container, path):
    """What a process reads at a path, through the volume that is mounted there."""
    folder, _, key = path.rpartition("/")
    mounted = next(each["name"] for each in container["volumeMounts"] if each["mountPath"] == folder)
    volume = next(each["secret"] for each in pod["volumes"] if each["name"] == mounted)
    assert key in {each["path"] for each in volume.get("items", [{"path": key}])}
    return secret(volume["secretName"])[key]


def test_each_secret_that_is_named_is_made_or_stands_in_the_documentation():
    made = {name: secret(name) for name in secrets()}
    page = (ROOT / "docs/kubernetes.md").read_text()
    for overlay in OVERLAYS:
        for name, key in secret_keys(overlay):
            if name in made:
                assert key is None or key in made[name], (name, key)
            else:
                assert name in OPERATORS_SECRETS or f"`{name}`" in page, name


def test_a_password_that_would_break_an_address_is_refused():
    done = make_secrets(WEB_PASSWORD="a@b")
    assert done.returncode == 1
    assert "WEB_PASSWORD: becomes a part of URLs" in done.stderr


@everywhere
def test_each_config_map_that_is_named_holds_what_is_taken_from_it(overlay):
    maps = {each["metadata"]["name"]: each["data"] for each in BUILT[overlay] if each["kind"] == "ConfigMap"}
    named = [part["configMap"] for each in BUILT[overlay] for part in walk(each) if "configMap" in part]
    named += [part["configMapRef"] for each in BUILT[overlay] for part in walk(each) if "configMapRef" in part]
    assert {each["name"] for each in named} == maps.keys()
    for each in named:
        assert {item["key"] for item in each.get("items", ())} <= maps[each["name"]].keys()


@pytest.mark.parametrize("process", PROCESSES)
def test_each_probe_asks_for_what_answers_without_a_key(process):
    from web import auth, main  # noqa: PLC0415 - they read settings, which a test run alone has not

    _, container = ours("small")[process]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    asked = [
        container[name]["httpGet"] for name in container if name.endswith("Probe") and "httpGet" in container[name]
    ]
    assert {each["port"] for each in asked} <= ports.keys()
    paths = {each["path"] for each in asked}
    if process == "web":
        router = main.app.url_map.bind("")
        assert (
            {router.match(path.partition("?")[0])[0] for path in paths}
            == {"health.process", "health.stores"}
            <= auth.ANYBODY.keys()
        )
    else:
        assert paths == {"beat": set(), "worker": {"/metrics"}, "flower": {"/healthcheck"}}[process]


@everywhere
def test_each_port_is_the_one_that_the_process_listens_on(overlay):
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    for process, setting in {"web": "PORT", "beat": "PUNCTUAL_METRICS_PORT", "worker": "PUNCTUAL_METRICS_PORT"}.items():
        _, container = ours(overlay)[process]
        given = defaults | environment(container)
        assert [each["containerPort"] for each in container["ports"]] == [int(given[setting])]
        assert given["HOST"] == "0.0.0.0"
    _, flower = ours(overlay)["flower"]
    assert f"--port={flower['ports'][0]['containerPort']}" in flower["command"]


@everywhere
def test_a_beats_probes_are_those_of_compose(overlay):
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    _, beat = ours(overlay)["beat"]
    probes = [beat[name]["exec"]["command"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [["CMD", *probe] for probe in probes] == [compose["beat"]["healthcheck"]["test"]] * 3
    _, worker = ours(overlay)["worker"]
    assert ["CMD", *worker["readinessProbe"]["exec"]["command"]] == compose["worker"]["healthcheck"]["test"]


def test_the_documentation_shows_the_files_and_the_commands_that_are_there():
    page = (ROOT / "docs/kubernetes.md").read_text()
    named = set(re.findall(r"deploy/kubernetes[\w./-]*", page))
    assert [name for name in named if not (ROOT / name.rstrip("./")).exists()] == []
    shown = set(re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE))
    files = {
        str(path.relative_to(KUBERNETES))
        for path in KUBERNETES.rglob("*")
        if path.is_file() and path.name != "kustomization.yaml"
    }
    assert shown == files


@everywhere
def test_what_an_upgrade_applies_first_needs_nothing_that_comes_later(overlay):
    first = [each for each in BUILT[overlay] if each["metadata"].get("labels", {}).get("punctual/first") == "true"]
    there = {(each["kind"], each["metadata"]["name"]) for each in first}
    assert {name for kind, name in there if kind == "Job"} == {"punctual-release", "punctual-broker-users"}
    for job in (each for each in first if each["kind"] == "Job"):
        for part in walk(job):
            named = part.get("configMap") or part.get("configMapRef")
            assert named is None or ("ConfigMap", named["name"]) in there
        assert ("ServiceAccount", job["spec"]["template"]["spec"]["serviceAccountName"]) in there


def test_while_a_password_is_replaced_processes_get_another_name_and_the_one_that_they_leave_keeps_its_password():
    done = make_secrets(WEB_USER="punctual_web_second", WEB_PASSWORD="new", WEB_PASSWORD_SECOND="new")
    made = {
        each["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in each["data"].items()}
        for each in yaml.safe_load_all(done.stdout)
    }
    assert "//punctual_web_second:new@" in made["punctual-web"]["DATABASE_URL"]
    assert "//punctual_web_second:new@" in made["punctual-web"]["BROKER_URL"]
    assert "//punctual_web:new@" in made["punctual-web"]["REDIS_URL"]
    assert made["punctual-second-passwords"]["WEB_PASSWORD_SECOND"] == "new"
    assert made.keys() == secrets().keys() - {"punctual-postgresql-web"}
