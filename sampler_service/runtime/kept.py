"""What a registry must know again though its process was lost: in Ray's own store, which lasts as its cluster does."""

from __future__ import annotations

import json
from typing import Any

from ray.experimental import internal_kv

_KEY = b"catalog"


def keep(namespace: str, state: dict[str, Any]) -> None:
    """Keep the state of a service's catalog, in place of what was kept before."""
    internal_kv._internal_kv_put(_KEY, json.dumps(state).encode(), True, namespace=_space(namespace))


def kept(namespace: str) -> dict[str, Any]:
    """What was kept last; empty when nothing was."""
    return json.loads(internal_kv._internal_kv_get(_KEY, namespace=_space(namespace)) or b"{}")


def forget(namespace: str) -> None:
    """Leave nothing of a service."""
    internal_kv._internal_kv_del(_KEY, namespace=_space(namespace))


def _space(namespace: str) -> bytes:
    """Ray has names of its own in the store."""
    return f"sampler:{namespace}".encode()
