"""Where a run's shards go: spread over the nodes, or refused with what the cluster lacks.

A placement group reserves for each shard the memory that it will fill, and its GPUs. So shards of one run go to
different nodes, those of many runs to where there is most room, and either a run fits or nothing of it is started.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sampler_service import sizes
from sampler_service.config import RunConfig, ServiceConfig
from sampler_service.errors import Busy, ConfigError
from sampler_service.sketch import routing

RESERVE_S = 3.0
"""within which resources that the cluster has must become free: those of a run that is being closed, say"""

HEAD = "node:__internal_head__"
"""a resource of the head node alone"""

Bundle = Mapping[str, float]
"""amounts by resource, as Ray has them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """So many bundles, and for what."""

    what: str
    bundle: Bundle
    count: int = 1


def shards(service: ServiceConfig, run: RunConfig | None = None) -> Need:
    """What the shards of a run take; of a run that is not known yet, their GPUs."""
    if run is None:
        return Need(what="the shards of each run", bundle=gpus(service.gpus_per_shard), count=service.shards)
    rows = routing.num_rows(run.num_examples, 0, service.shards)
    memory = {"memory": sizes.shard_bytes(rows, run.sketch_dim, run.sketch_dtype)}
    bundle = memory | gpus(service.gpus_per_shard)
    return Need(what=f"the shards of run {run.run!r}", bundle=bundle, count=service.shards)


def run_actor(run: RunConfig) -> Need:
    """What a run takes beside its shards."""
    return Need(what=f"the actor of run {run.run!r}", bundle={"memory": sizes.run_bytes(run.num_examples)})


def scorers(service: ServiceConfig, of: str = "each run") -> Need:
    """What the scorers of a run take of GPUs."""
    return Need(what=f"the scorers of {of}", bundle=gpus(service.scorer_gpus), count=service.scorers)


def gpus(count: float) -> dict[str, float]:
    return {"GPU": count} if count else {}


def needs_group(service: ServiceConfig) -> bool:
    """Whether there is anything to place: one node without GPUs takes what comes, as it always did."""
    return bool(service.gpus_per_shard) or len(_nodes()) > 1


def check_room(needs: Sequence[Need]) -> None:
    """Raise ConfigError, with what there is, unless the cluster's nodes, when empty, can hold all of these together."""
    rooms = [_Room(node) for node in _nodes()]
    placed = Counter[str]()
    # The largest first, as Ray places them.
    for need in sorted(needs, key=lambda need: (need.bundle.get("GPU", 0.0), need.bundle.get("memory", 0.0)))[::-1]:
        for _ in range(need.count):
            placed[need.what] += any(room.take(need.bundle) for room in rooms)
    for need in needs:
        if need.bundle and placed[need.what] < need.count:
            raise ConfigError(_refusal(need, placed[need.what], [each for each in needs if each is not need]))


class _Room:
    """What is left of a node."""

    def __init__(self, node: Bundle) -> None:
        self._gpus = [1.0] * int(node.get("GPU", 0.0))
        self._rest = dict(node)

    def take(self, bundle: Bundle) -> bool:
        """Put a bundle there, if it fits; a share of a GPU is one of a single GPU."""
        share = bundle.get("GPU", 0.0)
        able = [index for index, left in enumerate(self._gpus) if left + 1e-9 >= min(share, 1.0)]
        able.sort(key=self._gpus.__getitem__)  # the fullest that it fits on
        wanted = math.ceil(share)
        amounts = {kind: amount for kind, amount in bundle.items() if kind != "GPU"}
        if len(able) < wanted or any(self._rest.get(kind, 0.0) < amount for kind, amount in amounts.items()):
            return False
        for index in able[:wanted]:
            self._gpus[index] -= min(share, 1.0)
        for kind, amount in amounts.items():
            self._rest[kind] -= amount
        return True


def _refusal(need: Need, room: int, others: Sequence[Need]) -> str:
    has = "; ".join(_words({kind: node.get(kind, 0.0) for kind in need.bundle}) for node in _nodes()) or "nothing"
    beside = " and ".join(f"{each.count} x {_words(each.bundle)} of {each.what}" for each in others if each.bundle)
    advice = "start the service with fewer, or add nodes"
    if "GPU" in need.bundle:
        asked = [dict(gpus(need.bundle["GPU"]))] * need.count
        advice = (
            "start the service with fewer or with a smaller share of a GPU for each, or add nodes; where an autoscaler "
            f"adds them, ask it first: ray.autoscaler.sdk.request_resources(bundles={asked})"
        )
    return (
        f"{need.what}: asked for {need.count} x {_words(need.bundle)}, for {room} of which the cluster has room"
        f"{beside and f' beside {beside}'}, its nodes having {has}; {advice}"
    )


def reserve(name: str, need: Need) -> PlacementGroup:
    """A placement group of this name, made or found: on as many nodes as there are.

    Raises:
        Busy: the cluster has what is needed, but others have taken it; nothing is left waiting.
    """
    with suppress(ValueError):
        return get_placement_group(name)
    bundles = [dict(need.bundle)] * need.count
    group = placement_group(bundles, strategy="SPREAD", name=name, lifetime="detached")
    if group.wait(RESERVE_S):
        return group
    remove_placement_group(group)
    free = {kind: ray.available_resources().get(kind, 0.0) for kind in need.bundle}
    raise Busy(
        f"{need.what}: asked for {need.count} x {_words(need.bundle)}, which the cluster has but others use; free "
        f"after {RESERVE_S:g} s: {_words(free)} in all; close a run that is over, or add nodes"
    )


def in_group(group: PlacementGroup | None, number: int) -> PlacementGroupSchedulingStrategy | str:
    """That an actor has a bundle of a group; anywhere without one."""
    return PlacementGroupSchedulingStrategy(group, number) if group else "DEFAULT"


def unplaced(prefix: str) -> list[str]:
    """Bundles that lost their node and have found no other, of groups whose names begin so."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [
        f"{_words(bundle)} for number {number} of {each['name'].removeprefix(prefix).lstrip(':') or 'its shards'}"
        for each in placement_group_table().values()
        if each["name"].startswith(prefix) and each["state"] != "REMOVED"
        for number, bundle in each["bundles"].items()
        if each["bundles_to_node_id"].get(number) not in alive
    ]


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


def _words(amounts: Bundle) -> str:
    """ "1 GPU and 0.3 GB of memory" """
    texts = [
        f"{amount / 1e9:.3g} GB of memory" if kind == "memory" else f"{amount:g} {kind}"
        for kind, amount in amounts.items()
    ]
    return " and ".join(reversed(texts))
