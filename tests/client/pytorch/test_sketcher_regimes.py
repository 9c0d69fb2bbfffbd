"""Everything a training loop may do around a backward pass, against one-by-one gradients."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from io import BytesIO
from types import ModuleType
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sampler_client.errors import SketchError
from sampler_client.pytorch import probe
from sampler_client.pytorch.sketcher import GradientSketcher

B = 5
# Dynamo and Inductor of torch 2.13 use deprecated parts of torch themselves.
dynamo_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BACKENDS = ["eager", "aot_eager", *(["inductor"] if shutil.which("g++") else [])]


class Net(nn.Module):
    """Convolution, normalisation, in-place activations, and a middle that can be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.conv = nn.Conv2d(3, 4, 3)
        self.middle = nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu_().flatten(2).mT.flatten(1).unflatten(1, (-1, 16))
        middle = self.middle
        h = middle(h) if self.reentrant is None else checkpoint(middle, h, use_reentrant=self.reentrant)
        return self.head(h.relu().mean(1))


def images(b: int = B) -> Tensor:
    return torch.randn(b, 3, 6, 6, generator=torch.Generator().manual_seed(2))


def make(model: nn.Module, **settings: object) -> GradientSketcher:
    return GradientSketcher(model, 16, layers="all", norms="exact", dtype=np.float32, **settings)  # type: ignore[arg-type]


def matches(
    reference: ModuleType, sketcher: GradientSketcher, taken: object, x: Tensor, tolerance: float = 1e-5
) -> bool:
    """Compare with one-by-one gradients of a fresh plain model."""
    sketches, norms = reference.one_by_one(sketcher_of_net := make(net := Net()), net, x)
    sketcher_of_net.close()
    reference.assert_close(taken.sketches, sketches, tolerance)  # type: ignore[attr-defined]
    reference.assert_close(taken.norms, norms, tolerance)  # type: ignore[attr-defined]
    return sketcher.audit(tolerance=100 * tolerance) < 10 * tolerance


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
def test_mean_and_sum_losses_need_no_coefficients(reduce: Callable[[Tensor], Tensor], reference: ModuleType):
    model, x = Net(), images()
    with make(model, reduction=reduce.__name__) as sketcher:
        reduce(reference.losses_of(model, x)).backward()
        assert matches(reference, sketcher, sketcher.take(), x)


def test_weights_are_divided_out_and_weightless_examples_are_not_usable(reference: ModuleType):
    model, x = Net(), images()
    c = torch.tensor([0.1, 0.0, 3.0, float("nan"), 0.5])
    with make(model) as sketcher:
        (c.nan_to_num() * reference.losses_of(model, x)).sum().backward()
        taken = sketcher.take(c)
        assert taken.usable.tolist() == [True, False, True, False, True]
        sketches, norms = reference.one_by_one(sketcher, model, x)
        reference.assert_close(taken.sketches[taken.usable], sketches[taken.usable])
        reference.assert_close(taken.norms[taken.usable], norms[taken.usable])
        assert not taken.sketches[~taken.usable].any()
        assert not taken.norms[~taken.usable].any()


def test_accumulated_gradients_are_taken_pass_by_pass(reference: ModuleType):
    model, x = Net(), images(12)
    with make(model) as sketcher:
        for _ in range(2):  # optimiser steps
            model.zero_grad()
            parts = []
            for chunk in x.split(5):
                (reference.losses_of(model, chunk).mean() / 3).backward()
                parts.append(sketcher.take(np.full(len(chunk), 1 / (3 * len(chunk)))).sketches)
            assert sketcher.audit() < 1e-5
        reference.assert_close(np.concatenate(parts), reference.one_by_one(sketcher, model, x)[0])


def test_two_forward_passes_before_one_backward_pass_add_up(reference: ModuleType):
    model, x, other = Net(), images(), images().flip(0)
    with GradientSketcher(model, 16, layers="all", norms="sketch", dtype=np.float32) as sketcher:
        (reference.losses_of(model, x) + reference.losses_of(model, other)).sum().backward()
        taken = sketcher.take(np.ones(B))
        first, second = (reference.one_by_one(sketcher, model, inputs)[0] for inputs in (x, other))
        reference.assert_close(taken.sketches, first + second)
        assert sketcher.audit() < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant: bool, reference: ModuleType):
    model, x = Net(reentrant), images()
    with make(model) as sketcher:
        for _ in range(2):
            model.zero_grad()
            reference.losses_of(model, x).mean().backward()
            taken = sketcher.take()
        assert matches(reference, sketcher, taken, x)


@dynamo_warns
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_gives_the_same_in_one_graph(backend: str, reference: ModuleType):
    torch._dynamo.reset()
    model, x = Net(), images()
    with make(model) as sketcher:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for _ in range(2):
            model.zero_grad()
            reference.losses_of(compiled, x).mean().backward()
            taken = sketcher.take()
        assert matches(reference, sketcher, taken, x)


@dynamo_warns
def test_a_sketcher_made_from_a_compiled_model_works_and_other_batch_sizes_too(reference: ModuleType):
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with make(compiled) as sketcher:
        for b in (B, 3, 4):
            model.zero_grad()
            reference.losses_of(compiled, images(b)).mean().backward()
            assert matches(reference, sketcher, sketcher.take(), images(b))


def test_bfloat16_autocast_stays_near_the_exact_sketch(reference: ModuleType):
    model, x = Net(), images()
    with make(model) as sketcher:
        with torch.autocast("cpu", torch.bfloat16):
            out = reference.losses_of(model, x)
        out.mean().backward()
        taken = sketcher.take()
        assert taken.sketches.dtype == np.float32
        assert matches(reference, sketcher, taken, x, tolerance=5e-2)


def test_a_backward_pass_inside_autocast_projects_in_full_precision(reference: ModuleType):
    model, x = nn.Linear(6, 4), torch.randn(B, 6)
    with make(model) as sketcher:
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            losses = reference.losses_of(model, x)
        with torch.autocast("cpu", torch.bfloat16):
            losses.mean().backward()
        reference.assert_close(sketcher.take().sketches, reference.one_by_one(sketcher, model, x)[0])


def test_the_factor_of_a_grad_scaler_is_divided_out(reference: ModuleType):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    model, x = Net(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with make(model, loss_scale=scaler.get_scale) as sketcher:
        scaler.scale(reference.losses_of(model, x).mean()).backward()
        assert matches(reference, sketcher, sketcher.take(), x)
        scaler.step(optimizer)
        scaler.update()


def test_half_precision_overflow_is_not_usable():
    model = nn.Linear(3, 2)
    x = torch.tensor([[1.0, 1, 1], [1e9, 1e9, 1e9]])
    with GradientSketcher(model) as sketcher:
        model(x).sum().backward()
        taken = sketcher.take(np.ones(2))
    assert taken.sketches.dtype == np.float16
    assert taken.usable.tolist() == [True, False]
    assert not taken.sketches[1].any()


@pytest.mark.parametrize("room", [0, 100, probe.LATE_NUMBERS])
def test_entries_are_the_same_whether_made_at_once_or_at_the_end(
    room: int, monkeypatch: pytest.MonkeyPatch, reference: ModuleType
):
    monkeypatch.setattr(probe, "LATE_NUMBERS", room)
    model, x = (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 7), nn.Linear(7, 3)),
        torch.randn(B, 6),
    )
    with make(model) as sketcher:
        for _ in range(2):
            model.zero_grad()
            losses = reference.losses_of(model, x)
            losses.sum().backward(retain_graph=True)
            losses.sum().backward()
            taken = sketcher.take(np.full(B, 2))
            assert sketcher.audit() < 1e-5
        sketches, norms = reference.one_by_one(sketcher, model, x)
        reference.assert_close(taken.sketches, sketches)
        reference.assert_close(taken.norms, norms / 2**0.5)  # squares add without their cross term


def test_autograd_grad_leaves_no_trace(reference: ModuleType):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(B, 6, requires_grad=True)
    with make(model) as sketcher:
        total = reference.losses_of(model, x).sum()
        for inputs in (x, model[0].weight, tuple(model.parameters())):
            torch.autograd.grad(total, inputs, retain_graph=True)
            with pytest.raises(SketchError, match="no backward pass"):
                sketcher.take()
        total.backward()
        reference.assert_close(sketcher.take(np.ones(B)).sketches, reference.one_by_one(sketcher, model, x.detach())[0])


def test_gradients_by_torch_func_leave_no_trace():
    model, x = layered("late")

    def loss(parameters: dict[str, Tensor], x_i: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, x_i[None]).sum()

    with make(model) as sketcher:
        torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)
        plain_loss(model, x).backward()
        sketcher.take(np.ones(B))
        assert sketcher.audit() < 1e-5
        assert not sketcher.skipped


def layered(kind: str) -> tuple[nn.Module, Tensor]:
    """A model whose entries are made late, and two whose entries taps make; with an input of B examples."""
    torch.manual_seed(0)
    if kind == "convolution":
        return nn.Sequential(nn.Conv1d(6, 4, 2), nn.Tanh(), nn.Flatten(1, 2), nn.Linear(12, 3)), torch.randn(B, 6, 4)
    x = torch.randn(B, 6) if kind == "late" else torch.randn(B, 4, 6)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), x


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
    return of_x.square().sum()


def plain_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().sum()


@pytest.mark.parametrize("kind", ["late", "sequence", "convolution"])
@pytest.mark.parametrize("linear", [False, True])
def test_a_gradient_penalty_is_an_error_that_says_what_to_do(kind: str, linear: bool):
    model, x = layered(kind)
    if linear:  # then the second pass does not run the nodes of the first
        model[1] = nn.Identity()
    with make(model) as sketcher:
        (plain_loss(model, x) + penalty(model, x)).backward()
        with pytest.raises(SketchError, match=r"create_graph=True .*sketcher\.paused\(\)"):
            sketcher.take(np.ones(B))
        model.zero_grad()
        plain_loss(model, x).backward()
        sketcher.capture(np.ones(B))
        assert sketcher.audit() < 1e-5


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("kind", ["late", "sequence", "convolution"])
def test_a_backward_pass_that_builds_a_graph_is_an_error(kind: str):
    model, x = layered(kind)
    with make(model) as sketcher:
        (plain_loss(model, x) * 2).backward(create_graph=True)
        with pytest.raises(SketchError, match="create_graph=True"):
            sketcher.capture(np.ones(B))
        for p in model.parameters():
            p.grad = None  # it refers to its parameter


@pytest.mark.parametrize("kind", ["late", "sequence", "convolution"])
def test_the_plain_loss_beside_a_paused_penalty_is_sketched(kind: str):
    model, x = layered(kind)
    with make(model) as sketcher:
        plain_loss(model, x).backward()
        expected = sketcher.take(np.ones(B)).sketches
        with sketcher.paused():
            penalised = penalty(model, x)
        (plain_loss(model, x) + penalised).backward()
        np.testing.assert_allclose(sketcher.take(np.ones(B)).sketches, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("retained", [False, True])
def test_a_loss_that_is_kept_keeps_no_activation(retained: bool):
    model, x = layered("late")
    inputs: list[ref[Tensor]] = []
    with make(model) as sketcher:
        model[2].register_forward_pre_hook(lambda _module, args: inputs.append(ref(args[0].untyped_storage())))
        loss = plain_loss(model, x)
        storage = inputs[0]
        loss.backward(retain_graph=retained)
        if retained:
            assert storage() is not None
            loss.backward()
        sketcher.take(np.full(B, 1 + retained))
        assert sketcher.audit() < 1e-5
        assert storage() is None
        assert loss.grad_fn is not None  # still there, with all nodes


class WriteAfterwards(torch.autograd.Function):
    """An identity whose backward writes into a tensor that is not needed any more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spent: list[Tensor]) -> Tensor:
        ctx.spent = spent
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        for tensor in ctx.spent:
            tensor.detach().zero_()
        return grads[0], None


@pytest.mark.parametrize("what", ["input", "gradient"])
def test_writing_into_what_an_entry_is_made_of_is_an_error(what: str):
    model, x = layered("late")
    with make(model) as sketcher:
        spent: list[Tensor] = []
        h = model[1](WriteAfterwards.apply(model[0](x), spent))
        y = model[2](h)
        if what == "input":
            spent.append(h)
        else:
            y.register_hook(spent.append)
        y.sin().sum().backward()
        with pytest.raises(SketchError, match="written into"):
            sketcher.take(np.ones(B))
        model.zero_grad()
        plain_loss(model, x).backward()
        sketcher.take(np.ones(B))
        assert sketcher.audit() < 1e-5


def test_a_bias_that_trains_alone_minds_no_write_into_its_input():
    model, x = nn.Linear(6, 3), torch.randn(B, 6)
    model.weight.requires_grad_(False)
    with make(model) as sketcher:
        loss = model(x).sum()
        x.zero_()
        loss.backward()
        sketcher.take(np.ones(B))
        assert sketcher.audit() < 1e-5


@pytest.mark.parametrize("pickled", [False, True])
def test_a_copied_or_saved_model_is_not_sketched(pickled: bool, reference: ModuleType):
    model, x = Net(), images()
    with make(model) as sketcher:
        losses = reference.losses_of(model, x)
        if pickled:
            torch.save(model, saved := BytesIO())
            saved.seek(0)
            twin = torch.load(saved, weights_only=False)
        else:
            twin = copy.deepcopy(model)
        reference.losses_of(twin, images(3)).mean().backward()
        losses.mean().backward()
        assert matches(reference, sketcher, sketcher.take(), x)


def test_evaluation_and_paused_passes_leave_no_trace(reference: ModuleType):
    model, x = Net(), images()
    with make(model) as sketcher:
        losses = reference.losses_of(model, x)
        with torch.no_grad():
            model(images(9))
        losses.mean().backward()
        with sketcher.paused():
            reference.losses_of(model, images(9)).mean().backward()
        model.zero_grad()
        reference.losses_of(model, x).mean().backward()
        taken = sketcher.take(np.full(B, 2 / B))  # two equal passes
        reference.assert_close(taken.sketches, reference.one_by_one(sketcher, model, x)[0])


def test_a_part_of_the_model_may_be_called_alone(reference: ModuleType):
    model, x = Net(), torch.randn(B, 16)
    with make(model) as sketcher:
        model.middle(x).sum(1).mean().backward()
        taken = sketcher.take()
        assert taken.usable.all()
        assert sketcher.audit() < 1e-5


def test_a_missing_backward_pass_is_an_error():
    model = Net()
    with make(model) as sketcher:
        model(images())
        with pytest.raises(SketchError, match="call it after backward"):
            sketcher.take()
        with pytest.raises(SketchError, match="call take"):
            sketcher.audit()


def test_a_wrong_number_of_coefficients_is_an_error():
    model = Net()
    with make(model) as sketcher:
        model(images()).sum().backward()
        with pytest.raises(SketchError, match="4 coefficients for a backward pass of 5"):
            sketcher.take(np.ones(4))


def test_passes_of_different_sizes_must_be_taken_apart():
    model = Net()
    with make(model) as sketcher:
        model(images(5)).sum().backward()
        model(images(4)).sum().backward()
        with pytest.raises(SketchError, match=r"\[5, 4\] examples"):
            sketcher.take()
        model(images(4)).sum().backward()
        assert len(sketcher.take().norms) == 4


def test_training_is_not_changed_by_a_sketcher(reference: ModuleType):
    plain, watched, x = Net(), Net(), images()
    with make(watched) as sketcher:
        for model in (plain, watched):
            reference.losses_of(model, x).mean().backward()
        sketcher.take()
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_close_removes_every_hook():
    model = Net()
    before = {name: dict(m._forward_hooks) for name, m in model.named_modules()}
    sketcher = make(model)
    sketcher.close()
    sketcher.close()
    assert {name: dict(m._forward_hooks) for name, m in model.named_modules()} == before
    assert not any(m._forward_pre_hooks or m._forward_hooks_with_kwargs for m in model.modules())
    model(images()).sum().backward()
    with pytest.raises(SketchError):
        sketcher.take()
