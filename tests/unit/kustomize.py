"""Builds a kustomization as `kubectl kustomize` does, from what deploy/kubernetes uses of it and no more: resources,
namespace, images, configMapGenerator, and patches that are lists of JSON Patch operations for a target of a kind and a
name. Left out: the hash behind a generated name, and the order. A test holds it against the real one where that is.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

CLUSTER_WIDE = {"Namespace"}
"""Kinds in use here that have no namespace, among those to which a kustomization gives one."""

KNOWN = {"apiVersion", "kind", "resources", "namespace", "images", "patches", "configMapGenerator"}


def build(folder: Path) -> list[dict[str, Any]]:
    """All that `folder`'s kustomization makes. Raises ValueError where it asks for what is not known here."""
    given = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if given.keys() - KNOWN:
        raise ValueError(f"{folder}: not known here: {given.keys() - KNOWN}")
    made = [each for name in given.get("resources", ()) for each in _load(folder / name)]
    made += [_config_map(folder, wanted) for wanted in given.get("configMapGenerator", ())]
    for patch in given.get("patches", ()):
        _patch(made, patch)
    for image in given.get("images", ()):
        _replace_image(made, image)
    if "namespace" in given:
        for each in made:
            if each["kind"] not in CLUSTER_WIDE:
                each["metadata"]["namespace"] = given["namespace"]
    return made


def _load(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return build(path)
    # what an anchor says twice is two things, of which a patch changes one
    return [copy.deepcopy(each) for each in _plain(list(yaml.safe_load_all(path.read_text())))]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _config_map(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    data = {name: (folder / name).read_text() for name in wanted.get("files", ())}
    for name in wanted.get("envs", ()):
        lines = [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("#")]
        data |= dict(line.split("=", 1) for line in lines)
    metadata = {"name": wanted["name"]} | wanted.get("options", {})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _patch(made: list[dict[str, Any]], patch: dict[str, Any]) -> None:
    target = patch["target"]
    found = [each for each in made if each["kind"] == target["kind"] and each["metadata"]["name"] == target["name"]]
    if not found:
        raise ValueError(f"there is no {target}")
    for each in found:
        for operation in yaml.safe_load(patch["patch"]):
            _apply(each, **operation)


def _apply(thing: Any, *, op: str, path: str, value: Any = None) -> None:
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])
    for part in way:
        thing = thing[int(part)] if isinstance(thing, list) else thing[part]
    if op == "add" and last == "-":
        thing.append(value)
        return
    key: Any = int(last) if isinstance(thing, list) else last
    if op == "remove":
        del thing[key]
    elif op == "replace":
        thing[key]  # it must be there
        thing[key] = value
    elif op == "add" and isinstance(thing, dict):
        thing[key] = value
    else:
        raise ValueError(f"{op} {path}: not known here")


def _replace_image(value: Any, image: dict[str, str]) -> None:
    if isinstance(value, dict):
        if value.get("image") == image["name"]:
            value["image"] = f"{image['newName']}:{image['newTag']}"
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _replace_image(each, image)
