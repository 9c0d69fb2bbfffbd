"""Exact look-ahead tells what a step would do, and does nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sampler_client.errors import ConfigError
from sampler_client.pytorch.lookahead import lookahead_drops


def batch(seed: int, rows: int = 8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(make) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = make(model.parameters())
    for seed in range(3):
        optimizer.zero_grad()
        loss(model, batch(seed)).backward()
        optimizer.step()
    return model, optimizer


MAKES = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.Adam(p, lr=0.01),
]


@pytest.mark.parametrize("make", MAKES, ids=["momentum", "adam"])
@pytest.mark.parametrize("relative", [False, True])
def test_drops_are_those_of_real_steps(make, relative):
    model, optimizer = trained(make)
    candidates, target = [batch(10 + seed) for seed in range(3)], batch(99, 32)
    found = lookahead_drops(model, optimizer, loss, candidates, target, relative=relative)
    for drop, candidate in zip(found.tolist(), candidates, strict=True):
        stepped, copied = trained(make)
        stepped.eval()
        before = loss(stepped, target).item()
        copied.zero_grad()
        loss(stepped, candidate).backward()
        copied.step()
        expected = before - loss(stepped, target).item()
        assert drop == pytest.approx(expected / before if relative else expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("make", MAKES, ids=["momentum", "adam"])
def test_nothing_is_changed_by_it(make):
    model, optimizer = trained(make)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model[1].eval()  # frozen statistics
    lookahead_drops(model, optimizer, loss, [batch(1), batch(2)])
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    for key, before in state["state"].items():
        after = optimizer.state_dict()["state"][key]
        assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


def test_without_a_target_each_candidate_is_its_own():
    model, optimizer = trained(MAKES[0])
    both = lookahead_drops(model, optimizer, loss, [batch(1), batch(2)])
    assert both[1] == pytest.approx(lookahead_drops(model, optimizer, loss, [batch(2)], batch(2))[0].item())
    assert (both > 0).all()


def test_a_drop_of_no_loss_is_not_divided_by_it():
    model, optimizer = trained(MAKES[0])
    found = lookahead_drops(model, optimizer, lambda *given: 0 * loss(*given), [batch(1)], relative=True)
    assert found.tolist() == [0]


def test_bad_input_is_refused_and_changes_nothing():
    model, optimizer = trained(MAKES[0])
    weights = copy.deepcopy(model.state_dict())

    def losses(model, batch):
        """A mean of the target's, one for each row of a candidate's."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="mean" if len(batch[1]) == 32 else "none")

    with pytest.raises(ConfigError, match=r"candidates must hold one batch or more .* got \[\]"):
        lookahead_drops(model, optimizer, loss, [])
    others = torch.optim.SGD([*model.parameters(), torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ConfigError, match=r"of the model's parameters, but 1 of its \d are of something else"):
        lookahead_drops(model, others, loss, [batch(1)])
    with pytest.raises(ConfigError, match="one finite number"):
        lookahead_drops(model, optimizer, loss, [batch(1)], (torch.full((2, 5), torch.nan), torch.zeros(2).long()))
    with pytest.raises(ConfigError, match=r"one finite number for a batch, got tensor\(\["):
        lookahead_drops(model, optimizer, losses, [batch(1)], batch(99, 32))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
