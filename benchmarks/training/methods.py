"""All that is compared, by name: peers in process, our policies through the service, some with less of the budget."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from benchmarks.training.loop import MOMENTUM, Method
from benchmarks.training.memory import MEMORIES
from benchmarks.training.ours import AHEAD, OURS, Ours, options
from benchmarks.training.peers import PEERS
from benchmarks.training.tasks import Setting, Task

HARNESS = 2
"""raised by hand when the benchmark, or a policy, changes what runs give: those that are there are made anew"""

SHORTER = {", half the steps": 0.5, ", 0.6 of the steps": 0.6}
"""after a method's name: its budget, and with it its learning rates' fall, is so much of the others'"""

IN_PROCESS = PEERS | MEMORIES

METHODS = (*PEERS, *MEMORIES, *OURS, *(name + shorter for shorter in SHORTER for name in ("shuffle", "two_stage")))


def parts_of(name: str) -> tuple[str, float]:
    """A method's name without what it says of its budget, and the share of the others' budget that it has."""
    for shorter, share in SHORTER.items():
        if name.endswith(shorter):
            return name.removesuffix(shorter), share
    return name, 1.0


def make_method(name: str, task: Task, *, seed: int, address: str) -> Method:
    """A method for one run; `address` is that of a service."""
    kind, share = parts_of(name)
    task = replace(task, setting=replace(task.setting, steps=round(share * task.setting.steps)))
    return IN_PROCESS[kind](task, seed) if kind in IN_PROCESS else Ours(task, kind, address=address, seed=seed)


def setup(setting: Setting, name: str) -> str:
    """A short name of all that a run depends on beside its learning rate and seed: one that changed is made anew.

    Which other learning rates are tried is nothing that it depends on.
    """
    depends_on = replace(setting, learning_rates=()), hyper_parameters(name), HARNESS, MOMENTUM, AHEAD
    return hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]


def hyper_parameters(name: str) -> str:
    """What it runs with, the learning rate aside: "beta 3". Empty for one without any, or that is no longer here."""
    name, _ = parts_of(name)
    if name in IN_PROCESS:
        values = {key: getattr(IN_PROCESS[name], key) for key in IN_PROCESS[name].hyper}
    else:
        values = options(name) if name in OURS else {}
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
