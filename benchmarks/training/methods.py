"""All that is compared, by name: peers in process, our policies through the service, some with half of the budget."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from benchmarks.training.loop import MOMENTUM, Method
from benchmarks.training.ours import AHEAD, OURS, Ours, options
from benchmarks.training.peers import PEERS
from benchmarks.training.tasks import Setting, Task

HARNESS = 2
"""raised by hand when the benchmark, or a policy, changes what runs give: those that are there are made anew"""

HALVED = ", half the steps"
"""after a method's name: its budget, and with it its learning rates' fall, is half of the others'"""

METHODS = (*PEERS, *OURS, "shuffle" + HALVED, "two_stage" + HALVED)


def make_method(name: str, task: Task, *, seed: int, address: str) -> Method:
    """A method for one run; `address` is that of a service."""
    if name.endswith(HALVED):
        task = replace(task, setting=replace(task.setting, steps=task.setting.steps // 2))
    kind = name.removesuffix(HALVED)
    return PEERS[kind](task, seed) if kind in PEERS else Ours(task, kind, address=address, seed=seed)


def setup(setting: Setting, name: str) -> str:
    """A short name of all that a run depends on beside its learning rate and seed: one that changed is made anew.

    Which other learning rates are tried is nothing that it depends on.
    """
    depends_on = replace(setting, learning_rates=()), hyper_parameters(name), HARNESS, MOMENTUM, AHEAD
    return hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]


def hyper_parameters(name: str) -> str:
    """What it runs with, the learning rate aside: "beta 3". Empty for one without any, or that is no longer here."""
    name = name.removesuffix(HALVED)
    if name in PEERS:
        values = {key: getattr(PEERS[name], key) for key in PEERS[name].hyper}
    else:
        values = options(name) if name in OURS else {}
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
