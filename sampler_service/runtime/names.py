"""What the actors of a service are called, and which of them there are.

A service is a Ray namespace, so that several share a cluster without meeting. Its actors are found again by name:
`registry`, `gateway:G`, `page:P`, `holdings:NODE`, and of each opening T of a run R `run:R:T`, `shard:R:T:0`,
`weights:R:T` and `scorer:R:T:0`. No name of a run or service has a colon.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress

import ray
from ray.util import list_named_actors

REGISTRY = "registry"

POLL_S = 0.1


def token() -> str:
    """Tells one opening, or one gateway, from all others."""
    return uuid.uuid4().hex


def join(kind: str, *parts: object) -> str:
    """The name of an actor, such as join("shard", opening, 0)."""
    return ":".join((kind, *map(str, parts)))


def opening_of(name: str) -> str:
    """The opening, "RUN:TOKEN", that an actor belongs to; empty when it belongs to none."""
    kind, *parts = name.split(":")
    return ":".join(parts[:2]) if kind in ("run", "shard", "weights", "scorer") else ""


def run_of(opening: str) -> str:
    return opening.partition(":")[0]


def existing(namespace: str, *kinds: str) -> list[str]:
    """Names of a service's actors that are there or are being made again; of these kinds, or of all."""
    found = [each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == namespace]  # type: ignore[index]
    return sorted(name for name in found if not kinds or name.split(":")[0] in kinds)


def services() -> list[str]:
    """Names of all services on the cluster."""
    every = list_named_actors(all_namespaces=True)
    return sorted(each["namespace"] for each in every if each["name"] == REGISTRY)  # type: ignore[index]


def kill(namespace: str, name: str) -> None:
    """End an actor for good; one that is gone already is no error."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace))


def gone(namespace: str, *kinds: str, within_s: float) -> list[str]:
    """Wait until there is no such actor; names of those that are there still."""
    deadline = time.monotonic() + within_s
    while left := existing(namespace, *kinds):
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return left
