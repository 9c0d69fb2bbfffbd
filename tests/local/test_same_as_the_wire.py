"""The same seed and the same reports give the same batches in this process as over gRPC."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import sampler_client as sampler
from sampler_client import Phase
from sampler_service.local import LocalService
from tests.client.conftest import QUICK
from tests.local.data import DIM, STEPS, make_loader, make_model

EPOCHS = 4

RUNS: dict[str, dict[str, Any]] = {
    "shuffle": {},
    "gradient_clustering": {},
    "importance": {"policy_options": {"gate": 1}},
    "infobatch": {"epochs": EPOCHS},
    "selective_backprop": {},
    "balanced_order": {},
    "poa": {},
    "validation_alignment": {},
    "auto": {},
    "phases": {"epochs": EPOCHS, "phases": [Phase(0.5, "shuffle"), Phase(1, "importance", {"gate": 1})]},
}


def train(place: Any, client: sampler.SamplerClient, policy: str, ahead: int) -> list[tuple]:
    """All that was said of each batch; every report is in the table before anything else happens."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sketcher = sampler.GradientSketcher(model, dim=DIM)
    options = {"run": "r", "policy": policy, "seed": 3, "sketch_dim": DIM, "ahead": ahead} | RUNS[policy]
    received, bunch = [], max(1, ahead // 2)
    with sampler.attach(make_loader(), place, timeouts=QUICK, **options) as loader:
        for epoch in range(EPOCHS):
            before = client.statistics("r").batches
            for (ids, x, labels), batch in loader:
                np.testing.assert_array_equal(ids.numpy(), batch.example_ids)
                await_lent(client, before + min(ahead + batch.step // bunch * bunch, len(loader)))
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), labels, reduction="none")
                batch.weighted_mean(losses).backward()
                optimizer.step()
                batch.report(losses, sketcher)
                loader.fence()
                arrays = (batch.example_ids, batch.weights, batch.probabilities, batch.cluster_ids)
                numbers = (batch.batch_id, batch.epoch, batch.step, batch.table_version, batch.lead)
                received.append((batch.policy, loader.reason, *numbers, *(array.tolist() for array in arrays)))
            _, x, labels = make_loader().dataset.tensors
            F.cross_entropy(model(x), labels).backward()
            loader.set_target(sketcher.take())
            assert loader.state_dict()["epoch"] == epoch + 1
    sketcher.close()
    return received


def await_lent(client: sampler.SamplerClient, count: int) -> None:
    """Over the wire a batch that was done with gives credit for another in its own time: wait for it, so that what is
    planned before a report is planned before it."""
    deadline = time.monotonic() + 5
    while client.statistics("r").batches < count:
        assert time.monotonic() < deadline, f"{count} batches were not lent within 5 s"
        time.sleep(0.002)
    assert client.statistics("r").batches == count


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("policy", ["gradient_clustering", "importance"])
def test_draws_are_planned_from_the_same_reports_however_far_ahead(served, policy, ahead):
    same_both_ways(served, policy, ahead)


@pytest.mark.parametrize("policy", sorted(RUNS))
def test_batches_are_those_of_the_wire(served, policy):
    received = same_both_ways(served, policy, ahead=2)
    served_by = {row[0] for row in received}
    wanted = {"phases": {"shuffle", "importance"}}.get(policy, {policy})
    if policy != "auto":  # which decides by what it measures
        assert wanted <= served_by, f"only {served_by} served: this would not notice a difference"


def same_both_ways(served, policy: str, ahead: int) -> list[tuple]:
    with LocalService() as service:
        here = train(service, service, policy, ahead)
    with sampler.SamplerClient(served.address, timeouts=QUICK) as client:
        there = train(served.address, client, policy, ahead)
    assert len(here) == len(there)
    for ours, theirs in zip(here, there, strict=True):
        assert ours == theirs
    assert len({tuple(row[7]) for row in here}) > STEPS, "batches differ from one another"
    return here
