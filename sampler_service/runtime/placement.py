"""Where a run's shards go: spread over the nodes, or refused with what the cluster lacks.

A placement group reserves for each shard the memory that it will fill, and its GPUs. So shards of one run go to
different nodes, those of many runs to where there is most room, and either a run fits or nothing of it is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import Busy, ConfigError
from sampler_service.sketch import routing

RESERVE_S = 3.0
"""within which resources that the cluster has must become free: those of a run that is being closed, say"""

PROCESS_BYTES = 200 * 1024**2
"""of a shard's process with nothing in it"""

ROW_BYTES = 23
"""of a row beside its sketch: scale, step, loss, norm, cluster, and whether there is one"""

HEAD = "node:__internal_head__"
"""a resource of the head node alone"""

Bundle = Mapping[str, float]
"""amounts by resource, as Ray has them"""


def bundle_of(run: RunConfig, service: ServiceConfig) -> Bundle:
    """What each shard of a run takes."""
    rows = routing.num_rows(run.num_examples, 0, service.shards)
    sketch = run.sketch_dim * (2 if run.sketch_dtype == "float16" else 4)
    memory = {"memory": float(PROCESS_BYTES + rows * (sketch + ROW_BYTES))}
    return memory | gpus(service.gpus_per_shard)


def gpus(count: float) -> dict[str, float]:
    return {"GPU": count} if count else {}


def needs_group(service: ServiceConfig) -> bool:
    """Whether there is anything to place: one node without GPUs takes what comes, as it always did."""
    return bool(service.gpus_per_shard) or len(_nodes()) > 1


def check_room(what: str, bundle: Bundle, count: int) -> None:
    """Raise ConfigError, with what there is, unless the cluster's nodes, when empty, can hold `count` bundles."""
    nodes = _nodes()
    room = sum(_fitting(node, bundle) for node in nodes)
    if room >= count or not bundle:
        return
    has = "; ".join(_words({kind: node.get(kind, 0.0) for kind in bundle}) for node in nodes) or "nothing"
    advice = "start the service with fewer, or add nodes"
    if "GPU" in bundle:
        asked = [dict(gpus(bundle["GPU"]))] * count
        advice = (
            "start the service with fewer or with a smaller share of a GPU for each, or add nodes; where an autoscaler "
            f"adds them, ask it first: ray.autoscaler.sdk.request_resources(bundles={asked})"
        )
    raise ConfigError(
        f"{what}: asked for {count} x {_words(bundle)}, for {room} of which the cluster has room, its nodes having "
        f"{has}; {advice}"
    )


def reserve(name: str, what: str, bundle: Bundle, count: int) -> PlacementGroup:
    """A placement group of `count` bundles on as many nodes as there are.

    Raises:
        Busy: the cluster has them, but others have taken them; nothing is left waiting.
    """
    group = placement_group([dict(bundle)] * count, strategy="SPREAD", name=name, lifetime="detached")
    if group.wait(RESERVE_S):
        return group
    remove_placement_group(group)
    free = {kind: ray.available_resources().get(kind, 0.0) for kind in bundle}
    raise Busy(
        f"{what}: asked for {count} x {_words(bundle)}, which the cluster has but others use; free after "
        f"{RESERVE_S:g} s: {_words(free)} in all; close a run that is over, or add nodes"
    )


def release(name: str) -> None:
    """Remove a placement group; one that is gone already, or never was, is no error."""
    with suppress(ValueError):
        remove_placement_group(get_placement_group(name))


def reserved(prefix: str) -> list[str]:
    """Names of the placement groups there are that begin so."""
    groups = placement_group_table().values()
    return sorted(each["name"] for each in groups if each["name"].startswith(prefix) and each["state"] != "REMOVED")


def on_head() -> dict[str, float]:
    """Resources that have an actor placed on the head node: where Ray's own memory is, it is lost with nothing less.

    A strategy of affinity would not do: a node that joined just now may not know the head, and takes the actor itself.
    """
    return {HEAD: 0.001} if any(HEAD in node for node in _nodes()) else {}


def _nodes() -> list[Bundle]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fitting(node: Bundle, bundle: Bundle) -> int:
    return min((_times(node.get(kind, 0.0), share) for kind, share in bundle.items()), default=0)


def _times(has: float, share: float) -> int:
    """How often a share fits; a share below 1 is one of a single GPU."""
    return int(has) * int(1 / share + 1e-9) if share < 1 else int(has / share + 1e-9)


def _words(amounts: Bundle) -> str:
    """ "1 GPU and 0.3 GB of memory" """
    texts = [
        f"{amount / 1e9:.3g} GB of memory" if kind == "memory" else f"{amount:g} {kind}"
        for kind, amount in amounts.items()
    ]
    return " and ".join(reversed(texts))
