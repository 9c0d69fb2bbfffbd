"""All that is compared, by name: peers in process, our policies through the service."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from benchmarks.training.loop import Method
from benchmarks.training.ours import OURS, Ours, options
from benchmarks.training.peers import PEERS
from benchmarks.training.tasks import Setting, Task

METHODS = (*PEERS, *OURS)


def make_method(name: str, task: Task, *, seed: int, address: str) -> Method:
    """A method for one run; `address` is that of a service."""
    return PEERS[name](task, seed) if name in PEERS else Ours(task, name, address=address, seed=seed)


def setup(setting: Setting, name: str) -> str:
    """A short name of all that a run depends on beside its learning rate and seed: one that changed is made anew.

    Which other learning rates are tried is nothing that it depends on.
    """
    depends_on = replace(setting, learning_rates=())
    return hashlib.sha256(f"{depends_on!r} {hyper_parameters(name)}".encode()).hexdigest()[:12]


def hyper_parameters(name: str) -> str:
    """What it runs with, the learning rate aside: "beta 3". Empty for one without any, or that is no longer here."""
    if name in PEERS:
        values = {key: getattr(PEERS[name], key) for key in PEERS[name].hyper}
    else:
        values = options(name) if name in OURS else {}
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
