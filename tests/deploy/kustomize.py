"""What `kubectl kustomize` makes of our manifests, for machines without it: the few things that they use, no others.

tests/deploy/test_kubernetes.py compares it with the real one where that is installed.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components", "patches", "images"),
    *("secretGenerator", "generatorOptions"),
}


def render(folder: Path) -> list[Manifest]:
    """Manifests of a kustomization, in no order in particular."""
    return _transformed(folder, [])


def _transformed(folder: Path, manifests: list[Manifest]) -> list[Manifest]:
    """The manifests of a folder beside those there are already, with what it changes in all of them."""
    asked = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := asked.keys() - KNOWN:
        raise ValueError(f"{folder}: {sorted(unknown)} is not among what this understands; add it here")
    for name in asked.get("resources", ()):
        path = folder / name
        manifests += render(path) if path.is_dir() else _load(path)
    manifests += [_secret(folder, secret) for secret in asked.get("secretGenerator", ())]
    for name in asked.get("components", ()):
        manifests = _transformed(folder / name, manifests)
    for patch in asked.get("patches", ()):
        (patched,) = (each for each in manifests if each["kind"] == patch["target"]["kind"])
        for operation in yaml.safe_load(patch["patch"]):
            _add(patched, operation)
    for image in asked.get("images", ()):
        _rename(manifests, image["name"], f"{image['newName']}:{image['newTag']}")
    if namespace := asked.get("namespace"):
        for manifest in manifests:
            if manifest["kind"] != "Namespace":
                manifest["metadata"]["namespace"] = namespace
    return manifests


def _load(path: Path) -> list[Manifest]:
    """By way of JSON: what an anchor names is written out at each place, and patched at one."""
    return [json.loads(json.dumps(each)) for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def _secret(folder: Path, asked: Manifest) -> Manifest:
    lines = [line for env in asked["envs"] for line in (folder / env).read_text(encoding="utf-8").split()]
    data = {key: base64.b64encode(value.encode()).decode() for key, _, value in (line.partition("=") for line in lines)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": asked["name"]},
        "type": "Opaque",
        "data": data,
    }


def _add(manifest: Manifest, operation: Manifest) -> None:
    """One operation of a JSON patch, of the only kind that we have."""
    if operation["op"] != "add":
        raise ValueError(f"{operation} is none that this understands; add it here")
    *way, last = operation["path"].strip("/").replace("~1", "/").split("/")
    at: Any = manifest
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if isinstance(at, list):
        at.append(operation["value"])
    else:
        at[last] = operation["value"]


def _rename(there: Any, image: str, to: str) -> None:
    if isinstance(there, dict):
        if there.get("image") == image:
            there["image"] = to
        there = list(there.values())
    for each in there if isinstance(there, list) else ():
        _rename(each, image, to)
