"""The service's policies, through a real service in processes of its own, as a user's three lines have them.

Its `rho_loss` is not among them: it needs the reference losses of the peer of that name, and goes by reported losses
where that one scores candidates afresh. Nor are the policies for pairs, targets, orders, phases and time budgets.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import sampler_client as sampler
from benchmarks.training.loop import Step
from benchmarks.training.tasks import Task, as_fetched
from sampler_service.policies import POLICIES

AHEAD = 16
"""steps of these tasks take one to thirty milliseconds"""

_POLICIES = {"shuffle (service)": "shuffle"} | {
    name: name
    for name in (
        "gradient_clustering", "importance", "infobatch", "selective_backprop", "trimmed_loss", "two_stage", "auto",
    )
} | {"two_stage, similar": "two_stage"}  # fmt: skip
"""policy of the service by the method's name"""

_SKETCHED = {"gradient_clustering", "importance"}
"""policies whose trainer sends gradient sketches"""

_SCORED = {"two_stage", "auto"}
"""policies with a second stage"""

_SIMILAR = "two_stage, similar"
"""candidates in the order of their sketches, so that like ones are rarely kept together"""


class Ours:
    """One run of a policy. The budget are steps, or epochs for a policy whose epochs get shorter."""

    def __init__(self, task: Task, name: str, *, address: str, seed: int) -> None:
        self.task, self.address, self.seed = task, address, seed
        self.name, self.policy = name, _POLICIES[name]
        self.notes: dict[str, Any] = {}
        self._run = f"training-{uuid.uuid4().hex[:12]}"
        self._sketcher: sampler.GradientSketcher | None = None

    def open(self, model: nn.Module) -> None:
        """Attach; the service starts processes for the run, which takes a second or two whatever its length."""
        batch_size = self.task.setting.batch_size
        loader: DataLoader[Any] = DataLoader(self.task.train, batch_size, shuffle=True, collate_fn=as_fetched)
        options: dict[str, Any] = {"two_stage": _second_stage(self.name, model)} if self.policy in _SCORED else {}
        if self.policy in _SKETCHED:
            self._sketcher = sampler.GradientSketcher(model, dim=64)
        self._loader = sampler.attach(
            loader,
            self.address,
            run=self._run,
            policy=self.policy,
            seed=self.seed,
            epochs=self.task.epochs,
            ahead=AHEAD,
            **options,
        )

    def steps(self, model: nn.Module) -> Iterator[Step]:  # noqa: ARG002 - it was attached with the model
        stage, scored = self._loader.second_stage, 0
        for (x, y), batch, progress in self._batches(self._loader):
            forwarded = stage.counts.candidates - scored if stage else 0
            scored += forwarded
            weights = torch.from_numpy(batch.weights.copy())
            yield Step(x, y, progress, weights=weights, forwarded=forwarded, handle=batch)

    def close(self) -> None:
        stage = self._loader.second_stage
        self._loader.flush()
        with sampler.SamplerClient(self.address) as client:
            said = client.statistics(self._run)
            self.notes = {
                "reason": said.reason,
                "variance_ratio": said.variance_ratio,
                "rejected": dict(said.rejected_rows),
                "dropped": self._loader.reports.dropped,
                "unscored": stage.counts.unscored if stage else 0,
                "stage_ratio": said.stage_ratio,
                "stage_cost": said.stage_cost,
                "uniform_share": said.uniform_share,
                "median_lead": said.median_lead,
                "p99_lead": said.p99_lead,
                "median_age_steps": said.median_age_steps,
            }
            self._loader.close()
            client.close_run(self._run)
        if self._sketcher is not None:
            self._sketcher.close()

    def _batches(self, sampled: sampler.SampledLoader) -> Iterator[tuple[Any, sampler.Batch, float]]:
        """Items with their handles and the share of the budget used before them."""
        steps = self.task.setting.steps
        epochs = steps * self.task.setting.batch_size / len(self.task.train)
        taken, epoch = 0, 0
        while True:
            for i, (item, batch) in enumerate(sampled):
                by_epoch = self.policy == "infobatch"
                progress = (epoch + i / len(sampled)) / epochs if by_epoch else taken / steps
                if progress >= 1:
                    return
                yield item, batch, progress
                taken += 1
            epoch += 1

    def settle(self) -> None:
        """Reports must be in the table; the service has planned what it has credit for by then."""
        self._loader.flush()

    def after(self, step: Step, losses: Tensor, logits: Tensor) -> None:  # noqa: ARG002
        step.handle.report(losses, self._sketcher)


OURS = tuple(_POLICIES)


def options(name: str) -> dict[str, float | str | bool]:
    """The options of a method's policy and of its second stage, which all runs leave at their defaults."""
    policy: Any = POLICIES[_POLICIES[name]]()
    chosen = asdict(policy)
    if _POLICIES[name] in _SCORED:
        stage = _second_stage(name, nn.Linear(1, 1))
        chosen |= {"candidates": stage.candidates, "mix": stage.mix, "order": stage.order}
    return chosen


def _second_stage(name: str, model: nn.Module) -> sampler.TwoStage:
    if name == _SIMILAR:
        return sampler.TwoStage(sampler.LastLayerScorer(model, sketch_dim=64), order="similar")
    return sampler.TwoStage(model)
