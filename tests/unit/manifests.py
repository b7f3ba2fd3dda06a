"""The manifests of deploy/kubernetes as tests look at them: what each overlay makes, and what is in it."""

import base64
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import kustomize
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("small", "production")
BUILT = {name: kustomize.build(KUBERNETES / "overlays" / name) for name in OVERLAYS}
PROCESSES = ("web", "beat", "worker", "flower")

everywhere = pytest.mark.parametrize("overlay", OVERLAYS)


def find(overlay, kind, name):
    return next(each for each in BUILT[overlay] if (each["kind"], each["metadata"]["name"]) == (kind, name))


def pods(overlay):
    """By the name of what makes them, the specs of all pods that the manifests themselves describe."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in BUILT[overlay]
        if each["kind"] in ("Deployment", "StatefulSet", "Job")
    }


def containers(overlay):
    """By their names, with the pod of each; those of third parties too."""
    return {
        each["name"]: (pod, each)
        for pod in pods(overlay).values()
        for each in [*pod.get("initContainers", ()), *pod["containers"]]
    }


def ours(overlay):
    return {name: found for name, found in containers(overlay).items() if "/punctual:" in found[1]["image"]}


def environment(container):
    return {each["name"]: each.get("value") for each in container["env"]}


def walk(value):
    """All mappings within a manifest."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from walk(each)


def named_secrets(overlay):
    """The names of the Secrets that the manifests of an overlay ask for."""
    return {name for name, _ in secret_keys(overlay)}


def secret_keys(overlay):
    """Each Secret that they name with each key that they take out of it, or None for all."""
    for part in (part for each in BUILT[overlay] for part in walk(each)):
        if "secretName" in part:
            keys = [item["key"] for item in part.get("items", ())] or [None]
            yield from ((part["secretName"], key) for key in keys)
        for field in ("secretKeyRef", "passwordSecret", "accessKeyId", "secretAccessKey", "secret"):
            if isinstance(part.get(field), dict) and "name" in part[field]:
                yield part[field]["name"], part[field].get("key")
        for each in part.get("secretTargetRef", ()):
            yield each["name"], each["key"]


@cache
def secrets():
    """What secrets.sh makes of an .env in which each value is its name in small letters, by name."""
    done = make_secrets()
    assert done.returncode == 0, done.stderr
    return {each["metadata"]["name"]: each for each in yaml.safe_load_all(done.stdout)}


def make_secrets(**changed):
    example = (ROOT / ".env.example").read_text()
    env = {name: name.lower().replace("_", "-") for name in re.findall(r"^(\w+)=$", example, re.MULTILINE)}
    return subprocess.run(
        ["sh", KUBERNETES / "secrets.sh"],
        env={"PATH": os.environ["PATH"]} | env | changed,
        check=False,
        capture_output=True,
        text=True,
    )


def secret(name):
    """What a Secret holds, by key."""
    return {key: base64.b64decode(value).decode() for key, value in secrets()[name]["data"].items()}
