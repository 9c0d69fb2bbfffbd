"""A time budget ends when it must, and learning rates end with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client.budget import TimeBudget
from tests.client.conftest import QUICK


class Steps:
    """A loader of four batches, each of which takes so many seconds of a clock of its own."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.seconds, self.passes = 100.0, seconds, 0

    def clock(self) -> float:
        return self.now

    def __iter__(self):
        self.passes += 1
        for took in self.seconds:
            self.now += took
            yield took


def test_passes_go_on_up_to_the_last_step_that_fits():
    loader = Steps(1.0, 1.0, 1.0, 1.0)
    budget = TimeBudget(10.5, loader.clock)
    assert budget.elapsed == 0 and budget.share == 0
    assert len(list(budget.over(loader))) == 10
    assert (budget.elapsed, loader.passes) == (10.0, 3)


def test_a_step_that_would_overrun_is_not_begun():
    loader = Steps(1.0, 1.0, 4.0, 1.0)
    budget = TimeBudget(12.0, loader.clock)
    assert sum(budget.over(loader)) == 9.0, "the next might take 4 seconds"


def test_a_batch_that_comes_after_the_deadline_is_not_trained_on():
    loader = Steps(1.0, 1.0, 1.0, 60.0, 1.0)
    budget = TimeBudget(10.0, loader.clock)
    assert list(budget.over(loader)) == [1.0, 1.0, 1.0], "the fourth came a minute late"


def test_a_run_that_goes_on_has_spent_what_its_checkpoint_says():
    loader = Steps(1.0)
    budget = TimeBudget(10.0, loader.clock, spent=7.0)
    assert budget.elapsed == 7.0 and budget.linear() == pytest.approx(0.3)
    assert len(list(budget.over(loader))) == 3
    assert budget.elapsed == 10.0
    with pytest.raises(sampler.ConfigError, match="spent must be at least 0, got -1"):
        TimeBudget(10.0, spent=-1)


def test_a_second_loop_goes_on_with_what_is_left():
    loader = Steps(1.0)
    budget = TimeBudget(10.0, loader.clock)
    for steps, _ in enumerate(budget.over(loader), 1):
        if steps == 4:
            break
    assert budget.share == pytest.approx(0.4)
    assert len(list(budget.over(loader))) == 6


def test_rates_fall_from_one_to_zero_with_the_budget():
    loader = Steps(1.0)
    budget = TimeBudget(4.0, loader.clock)
    assert budget.cosine() == budget.linear() == 1
    shares = [(budget.cosine(), budget.linear()) for _ in budget.over(loader)]
    assert [linear for _, linear in shares] == pytest.approx([0.75, 0.5, 0.25, 0])
    assert [cosine for cosine, _ in shares] == pytest.approx(
        [(1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4)]
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    assert torch.optim.lr_scheduler.LambdaLR(optimizer, budget.cosine).get_last_lr() == [pytest.approx(0)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "positive, got 0"),
        (-1.0, "positive, got -1.0"),
        (math.nan, "positive, got nan"),
        (math.inf, "finite, got inf"),
        ("600", "a number, got '600'"),
    ],
)
def test_a_budget_that_is_none_is_refused(seconds, words):
    with pytest.raises(sampler.ConfigError, match="^seconds must be " + words):
        TimeBudget(seconds)


def test_a_loader_that_yields_nothing_is_no_endless_loop():
    with pytest.raises(sampler.ConfigError, match="yields no batches"):
        list(TimeBudget(5.0).over([]))


def test_phases_go_by_the_budget(service_address: str):
    """The second pass begins with most of the budget spent."""
    clock = [0.0]
    budget = TimeBudget(100.0, lambda: clock[0])
    phases = [sampler.Phase(0.5, "shuffle"), sampler.Phase(1, "infobatch")]
    plain = DataLoader(TensorDataset(torch.arange(16)), batch_size=8)
    loader = sampler.attach(plain, service_address, run="r", phases=phases, budget=budget, timeouts=QUICK)
    policies = []
    for _, batch in budget.over(loader):
        policies.append(batch.policy)
        clock[0] += 26.0
    loader.close()
    assert policies == ["shuffle", "shuffle", "infobatch"]
    with pytest.raises(sampler.ConfigError, match="budget must be a TimeBudget, got 600"):
        sampler.attach(plain, service_address, run="r2", budget=600, timeouts=QUICK)


def test_the_policy_of_budgets_without_one_is_refused(service_address: str):
    plain = DataLoader(TensorDataset(torch.arange(16)), batch_size=8)
    with pytest.raises(sampler.ConfigError, match=r"budget=TimeBudget\(seconds\) and loop over budget.over\(loader\)"):
        sampler.attach(plain, service_address, run="r", policy="time_budget", epochs=4, timeouts=QUICK)


def test_a_loop_that_does_not_count_its_time_is_refused(service_address: str):
    plain = DataLoader(TensorDataset(torch.arange(16)), batch_size=8)
    budget = TimeBudget(100.0)
    with (
        sampler.attach(plain, service_address, run="r", policy="time_budget", budget=budget, timeouts=QUICK) as loader,
        pytest.raises(sampler.ConfigError, match=r"loop over budget.over\(loader\), not loader"),
    ):
        next(iter(loader))
