"""Multiplicative updates: the formula, what shares of itself a coordinate moves by, and the optimisers beneath."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy

import pytest
import torch

import sampler_client as sampler
from sampler_client.optim import Multiplicative

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam one by one": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
}


def parameters_of(values=(1.5, -2.0, 0.25)) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))]


def set_gradients(parameters, gradient) -> None:
    for parameter in parameters:
        parameter.grad = torch.as_tensor(gradient, dtype=torch.float64).clone()


@pytest.mark.parametrize("name", BASES)
def test_without_a_share_of_the_multiplicative_step_it_is_the_other_optimiser(name):
    ours, theirs = parameters_of(), parameters_of()
    optimizer, plain = Multiplicative(BASES[name](ours), blend=0.0), BASES[name](theirs)
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        gradient = torch.randn(3, generator=rng)
        set_gradients(ours, gradient)
        set_gradients(theirs, gradient)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("blend", [1.0, 0.4])
def test_a_step_of_sgd_is_the_papers_formula(blend):
    parameters = parameters_of()
    gradient = torch.tensor([3.0, -0.2, 50.0], dtype=torch.float64)
    set_gradients(parameters, gradient)
    before = parameters[0].detach().clone()
    Multiplicative(torch.optim.SGD(parameters, lr=0.1), eta_out=0.05, eta_in=2.0, blend=blend).step()
    multiplied = 0.05 * before.abs() * torch.tanh(2.0 * gradient)
    torch.testing.assert_close(parameters[0].detach(), before - blend * multiplied - (1 - blend) * 0.1 * gradient)


@pytest.mark.parametrize(
    ("name", "directions"),
    [
        # m l of the first two steps for gradients 3 and 1, worked out by hand from each optimiser's own rule
        ("sgd", (3, 1)),
        ("momentum", (3 + 0.9 * 3, 1 + 0.9 * (0.9 * 3 + 1))),  # Nesterov's: g + beta m
        ("adagrad", (3 / math.sqrt(9), 1 / math.sqrt(10))),
        ("rmsprop", (3 / math.sqrt(0.09), 1 / math.sqrt(0.99 * 0.09 + 0.01))),
        ("adam", (1, (0.9 * 0.3 + 0.1) / 0.19 / math.sqrt((0.999 * 0.009 + 0.001) / 0.001999))),
    ],
)
@pytest.mark.parametrize("blend", [1.0, 0.4])
def test_directions_and_scales_are_those_of_the_optimiser(name, directions, blend):
    parameters = parameters_of((-2.0,))
    base = BASES[name](parameters)
    optimizer, eta = Multiplicative(base, eta_out=0.05, eta_in=0.7, blend=blend), base.param_groups[0]["lr"]
    theta = -2.0
    for gradient, direction in zip((3.0, 1.0), directions, strict=True):
        set_gradients(parameters, [gradient])
        optimizer.step()
        multiplied = 0.05 * abs(theta) * math.tanh(0.7 * direction)
        theta -= blend * multiplied + (1 - blend) * eta * direction
        assert parameters[0].item() == pytest.approx(theta, rel=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_no_coordinate_moves_by_more_than_its_share_or_changes_its_sign(name):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(50, 20)), torch.nn.Parameter(torch.randn(20))]
    optimizer = Multiplicative(BASES[name](parameters), eta_out=0.1, eta_in=100.0)
    signs = [parameter.sign() for parameter in parameters]
    for _ in range(30):
        before = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = 10 * torch.randn_like(parameter)
        optimizer.step()
        for parameter, old, sign in zip(parameters, before, signs, strict=True):
            assert ((parameter - old).abs() <= 0.1 * old.abs() * (1 + 1e-5)).all()
            assert torch.equal(parameter.sign(), sign)


def test_what_is_zero_takes_the_additive_step_and_is_multiplicative_from_then_on():
    parameters = parameters_of((0.0, 1.0))
    optimizer = Multiplicative(torch.optim.SGD(parameters, lr=0.1), eta_out=0.01)
    set_gradients(parameters, [1.0, 1.0])
    optimizer.step()
    assert parameters[0][0].item() == pytest.approx(-0.1)
    set_gradients(parameters, [1.0, 1.0])
    optimizer.step()
    assert parameters[0][0].item() == pytest.approx(-0.1 - 0.01 * 0.1 * math.tanh(1.0))


def test_steps_far_below_the_precision_of_a_parameter_are_not_lost_in_it():
    parameter = torch.nn.Parameter(torch.tensor([1000.0]))
    optimizer = Multiplicative(torch.optim.SGD([parameter], lr=1e-8), eta_out=0.5, eta_in=1e3)
    parameter.grad = torch.tensor([1e-3])
    optimizer.step()
    assert parameter.item() == pytest.approx(1000 * (1 - 0.5 * math.tanh(1.0)), rel=1e-5)


def test_groups_have_settings_of_their_own():
    first, second = parameters_of()[0], parameters_of()[0]
    base = torch.optim.SGD([{"params": [first], "blend": 0.0}, {"params": [second], "eta_out": 0.5}], lr=0.1)
    optimizer = Multiplicative(base, eta_out=0.01, eta_in=10.0)
    set_gradients([first, second], [1.0, 1.0, 1.0])
    optimizer.step()
    torch.testing.assert_close(first.detach(), torch.tensor([1.4, -2.1, 0.15], dtype=torch.float64))
    assert second[0].item() == pytest.approx(1.5 * 0.5)


def test_parameters_that_are_added_later_belong_to_both_optimisers():
    (first,), (second,) = parameters_of(), parameters_of()
    optimizer = Multiplicative(torch.optim.SGD([first], lr=0.1), eta_out=0.01, eta_in=10.0)
    optimizer.add_param_group({"params": [second], "eta_out": 0.5})
    set_gradients([first, second], [1.0, 1.0, 1.0])
    optimizer.step()
    assert first[0].item() == pytest.approx(1.5 * 0.99) and second[0].item() == pytest.approx(1.5 * 0.5)
    optimizer.zero_grad()
    assert first.grad is None and second.grad is None
    with pytest.raises(sampler.ConfigError, match=r"eta_in must lie in \(0, inf\), got -1"):
        optimizer.add_param_group({"params": parameters_of(), "eta_in": -1})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 2


def test_a_copy_goes_on_by_itself():
    (parameter,) = parameters_of()
    optimizer = Multiplicative(torch.optim.Adam([parameter], lr=0.1), eta_out=0.02)
    set_gradients([parameter], [1.0, 1.0, 1.0])
    optimizer.step()
    for copy in (deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        before = parameter.detach().clone()
        (own,) = copy.param_groups[0]["params"]
        own.grad = torch.ones(3, dtype=torch.float64)
        copy.step()
        assert copy.param_groups is copy.base.param_groups
        assert own[0] < before[0]
        torch.testing.assert_close(parameter.detach(), before)


def test_a_schedule_by_which_signs_could_change_is_refused_before_anything_moves():
    parameters = parameters_of()
    optimizer = Multiplicative(torch.optim.SGD(parameters, lr=0.01), eta_out=0.05)
    for lr, refused in ((0.19, False), (0.2, True)):
        optimizer.param_groups[0]["lr"] = lr
        set_gradients(parameters, [1e3, 1e3, 1e3])
        before = parameters[0].detach().clone()
        if refused:
            with pytest.raises(
                sampler.ConfigError, match=r"lr / initial lr, 0.2 / 0.01, comes to 1, .* at the largest"
            ):
                optimizer.step()
            torch.testing.assert_close(parameters[0].detach(), before)
        else:
            optimizer.step()
            torch.testing.assert_close(parameters[0].detach(), before - 0.95 * before.abs())


def test_a_scheduler_lets_both_parts_fall():
    parameters = parameters_of((1.0,))
    optimizer = Multiplicative(torch.optim.SGD(parameters, lr=0.1), eta_out=0.1, eta_in=100.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    moved = []
    for _ in range(3):
        before = parameters[0].item()
        set_gradients(parameters, [1.0])
        optimizer.step()
        scheduler.step()
        moved.append(1 - parameters[0].item() / before)
    assert moved == pytest.approx([0.1, 0.05, 0.025])


def test_a_saved_state_goes_on_where_it_was():
    def train(parameters, optimizer, steps, seed):
        rng = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            set_gradients(parameters, torch.randn(3, generator=rng))
            optimizer.step()

    whole = parameters_of()
    optimizer = Multiplicative(torch.optim.Adam(whole, lr=0.01), eta_out=0.03, blend=0.7)
    train(whole, optimizer, 5, seed=0)
    state, values = deepcopy(optimizer.state_dict()), whole[0].detach().clone()
    train(whole, optimizer, 5, seed=1)
    again = [torch.nn.Parameter(values.clone())]
    restored = Multiplicative(torch.optim.Adam(again, lr=0.5))
    restored.load_state_dict(state)
    train(again, restored, 5, seed=1)
    torch.testing.assert_close(again[0], whole[0])
    assert restored.param_groups[0]["blend"] == 0.7


def test_parameters_without_a_gradient_stay_and_a_closure_is_called_once():
    moved, still = parameters_of()[0], parameters_of()[0]
    optimizer = Multiplicative(torch.optim.Adam([moved, still], lr=0.1))
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = (moved**2).sum()
        loss.backward()
        return loss

    before = still.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(1.5**2 + 4 + 0.0625)
    assert len(calls) == 1
    assert torch.equal(still, before)
    assert not torch.equal(moved, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(value):
    parameters = [*parameters_of(), *parameters_of((1.0, 2.0))]
    optimizer = Multiplicative(torch.optim.Adam(parameters, lr=0.1))
    parameters[0].grad = torch.ones(3, dtype=torch.float64)
    parameters[1].grad = torch.tensor([0.0, value], dtype=torch.float64)
    with pytest.raises(sampler.ConfigError, match=rf"shape \(2,\) in group 0 holds {value}"):
        optimizer.step()
    assert [parameter.tolist() for parameter in parameters] == [[1.5, -2.0, 0.25], [1.0, 2.0]]
    assert not optimizer.base.state


def test_gradients_whose_norm_overflows_are_finite_all_the_same():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3e38)
    Multiplicative(torch.optim.SGD([parameter], lr=0.1), eta_out=0.5).step()
    assert parameter.tolist() == [0.5, 0.5]


def test_a_step_of_the_other_optimiser_that_fails_leaves_the_parameters():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no step")

    parameters = parameters_of()
    set_gradients(parameters, [1.0, 1.0, 1.0])
    with pytest.raises(RuntimeError, match="no step"):
        Multiplicative(Failing(parameters, lr=0.1)).step()
    assert parameters[0].tolist() == [1.5, -2.0, 0.25]


def test_a_state_that_was_never_wrapped_is_refused():
    plain = torch.optim.Adam(parameters_of(), lr=0.1)
    with pytest.raises(sampler.ConfigError, match="group 0 has no eta_out, eta_in, blend, decay, initial_eta"):
        Multiplicative(torch.optim.Adam(parameters_of(), lr=0.1)).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("unfit", [torch.optim.LBFGS, torch.optim.Adafactor, torch.optim.ASGD])
def test_optimisers_whose_steps_are_not_of_gradients_alone_are_refused(unfit):
    with pytest.raises(sampler.ConfigError, match=f"which {unfit.__name__} does not"):
        Multiplicative(unfit(parameters_of()))


def test_weight_decay_is_decoupled():
    parameters = parameters_of((2.0,))
    set_gradients(parameters, [0.0])
    Multiplicative(torch.optim.SGD(parameters, lr=0.1), weight_decay=0.5).step()
    assert parameters[0].item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eta_out": 1.0}, r"eta_out must lie in \(0, 1\), got 1.0"),
        ({"eta_out": math.nan}, "eta_out must lie in"),
        ({"eta_in": 0.0}, r"eta_in must lie in \(0, inf\), got 0.0"),
        ({"blend": 1.5}, r"blend must lie in \[0, 1\], got 1.5"),
        ({"weight_decay": -1.0}, r"weight_decay must lie in \[0, inf\), got -1.0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, words):
    with pytest.raises(sampler.ConfigError, match=words):
        Multiplicative(torch.optim.SGD(parameters_of(), lr=0.1), **settings)


def test_a_learning_rate_that_is_no_number_is_refused():
    with pytest.raises(sampler.ConfigError, match=r"lr must lie in \[0, inf\) at every step, got nan"):
        Multiplicative(torch.optim.SGD(parameters_of(), lr=math.nan))


def test_a_rate_below_zero_by_which_signs_would_change_is_refused():
    (theta,) = parameters = parameters_of()
    optimizer = Multiplicative(torch.optim.SGD(parameters, lr=0.1))
    optimizer.param_groups[0]["lr"] = -50.0
    before, theta.grad = theta.detach().clone(), torch.ones_like(theta)
    with pytest.raises(sampler.ConfigError, match=r"at every step, got -50\.0"):
        optimizer.step()
    assert torch.equal(theta, before)


def test_a_schedule_that_ends_a_rounding_error_below_zero_goes_on():
    (theta,) = parameters = parameters_of()
    optimizer = Multiplicative(torch.optim.SGD(parameters, lr=0.1))
    optimizer.param_groups[0]["lr"] = -4.4e-19
    before, theta.grad = theta.detach().clone(), torch.ones_like(theta)
    optimizer.step()
    torch.testing.assert_close(theta.detach(), before)


def test_an_optimiser_that_decays_weights_by_itself_is_refused():
    with pytest.raises(sampler.ConfigError, match=r"weight_decay 0.01.*give it to Multiplicative"):
        Multiplicative(torch.optim.AdamW(parameters_of(), lr=0.1))
    with pytest.raises(sampler.ConfigError, match="torch optimiser, got list"):
        Multiplicative(parameters_of())  # pyright: ignore[reportArgumentType]
