"""All that is compared, by name: peers in process, our policies through the service."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from benchmarks.training.loop import Method
from benchmarks.training.ours import OURS, Ours, options
from benchmarks.training.peers import PEERS
from benchmarks.training.tasks import Setting, Task

SHORTER = {" in a quarter": 0.25, " in half": 0.5}
"""share of the task's steps, by the end of a method's name: the schedule ends with them. Who needs fewer steps plans
fewer, and the learning rate falls in time"""

METHODS = (*PEERS, *OURS, *(name + end for name in ("shuffle", "two_stage") for end in SHORTER))


def make_method(name: str, task: Task, *, seed: int, address: str) -> Method:
    """A method for one run; `address` is that of a service."""
    name, share = _split(name)
    task = replace(task, setting=replace(task.setting, steps=round(share * task.setting.steps)))
    return PEERS[name](task, seed) if name in PEERS else Ours(task, name, address=address, seed=seed)


def _split(name: str) -> tuple[str, float]:
    """The method of a name, and its share of the steps."""
    for end, share in SHORTER.items():
        if name.endswith(end):
            return name.removesuffix(end), share
    return name, 1.0


def setup(setting: Setting, name: str) -> str:
    """A short name of all that a run depends on beside its learning rate and seed: one that changed is made anew.

    Which other learning rates are tried is nothing that it depends on.
    """
    depends_on = replace(setting, learning_rates=())
    return hashlib.sha256(f"{depends_on!r} {hyper_parameters(name)}".encode()).hexdigest()[:12]


def hyper_parameters(name: str) -> str:
    """What it runs with, the learning rate aside: "beta 3". Empty for one without any, or that is no longer here."""
    name, share = _split(name)
    if name in PEERS:
        values = {key: getattr(PEERS[name], key) for key in PEERS[name].hyper}
    else:
        values = options(name) if name in OURS else {}
    if share < 1:
        values = {"steps": f"{share:g} of the others'", **values}
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
