"""The handle of a batch: the weighted mean of its losses, what it notes on the way, and its report."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sampler_client as sampler
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.batch import Batch

WEIGHTS = [0.5, 2.0, 1.0]


def batch_of(weights, *, world_size=1, global_batch_size=None, report=None) -> Batch:
    count = len(weights)
    message = pb.Batch(
        batch_id=1,
        epoch=2,
        step=3,
        example_ids=np.arange(count, dtype=np.int64).tobytes(),
        weights=np.asarray(weights, np.float32).tobytes(),
        probabilities=np.full(count, 0.1, np.float32).tobytes(),
        cluster_ids=np.zeros(count, np.int32).tobytes(),
        global_batch_size=global_batch_size or count,
        world_size=world_size,
    )
    return Batch(message, report, steps_per_epoch=10)


class NotingSketcher:
    """Keeps the coefficients it is given."""

    def take(self, coefficients, /):
        self.coefficients = coefficients
        taken = type("Taken", (), {})()
        taken.sketches = np.ones((3, 4), np.float16)
        taken.norms = np.ones(3, np.float32)
        taken.usable = np.array([True, False, True])
        return taken


def losses_of(values=(1.0, 2.0, 3.0), dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters and per-example losses that are their squares, so that losses are no leaves."""
    parameter = torch.tensor(values, dtype=dtype, requires_grad=True)
    return parameter, parameter**2


def test_the_value_is_the_weighted_sum_over_the_batch_size():
    _, losses = losses_of()
    expected = (0.5 * 1 + 2 * 4 + 1 * 9) / 3
    assert batch_of(WEIGHTS).weighted_mean(losses).item() == pytest.approx(expected)


def test_the_gradient_is_that_of_the_weighted_sum():
    parameter, losses = losses_of()
    batch_of(WEIGHTS).weighted_mean(losses).backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == pytest.approx([2 * 1 * 0.5 / 3, 2 * 2 * 2 / 3, 2 * 3 * 1 / 3])


def test_the_mean_over_ranks_is_the_weighted_mean_of_the_global_batch_also_when_it_is_ragged():
    weights, losses = np.array([1.0, 3.0, 0.5, 2.0, 1.0]), np.arange(1.0, 6.0)
    parts = [(weights[:3], losses[:3]), (weights[3:], losses[3:])]
    per_rank = [
        batch_of(w, world_size=2, global_batch_size=5).weighted_mean(torch.tensor(loss, dtype=torch.float64)).item()
        for w, loss in parts
    ]
    assert np.mean(per_rank) == pytest.approx((weights * losses).sum() / 5)


@pytest.mark.parametrize("scale", [1.0, 1 / 4, 1024.0])
def test_the_coefficients_are_the_derivatives_by_the_losses_whatever_scales_the_scalar(scale):
    batch, sketcher = batch_of(WEIGHTS, report=lambda _rows: None), NotingSketcher()
    _, losses = losses_of()
    (batch.weighted_mean(losses) * scale).backward()
    batch.report(losses, sketcher)
    assert sketcher.coefficients.tolist() == pytest.approx([scale * w / 3 for w in WEIGHTS])


def test_the_coefficients_of_one_micro_batch_do_not_meet_those_of_the_next():
    parameter = torch.ones(3, requires_grad=True)
    for weights in (WEIGHTS, [3.0, 3.0, 3.0]):
        batch, sketcher = batch_of(weights, report=lambda _rows: None), NotingSketcher()
        (batch.weighted_mean(parameter * 2) / 2).backward()
        batch.report(np.ones(3), sketcher)
        assert sketcher.coefficients.tolist() == pytest.approx([w / 6 for w in weights])


def test_a_batch_without_a_backward_pass_gives_no_coefficients():
    batch, sketcher = batch_of(WEIGHTS, report=lambda _rows: None), NotingSketcher()
    with torch.no_grad():
        batch.weighted_mean(torch.ones(3))
    batch.report(np.ones(3), sketcher)
    assert sketcher.coefficients is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_has_the_dtype_and_device_of_the_losses(dtype):
    parameter, losses = losses_of(dtype=dtype)
    mean = batch_of(WEIGHTS).weighted_mean(losses)
    assert (mean.dtype, mean.device) == (losses.dtype, losses.device)
    mean.backward()
    assert parameter.grad is not None
    assert torch.isfinite(parameter.grad).all()


def test_many_half_precision_losses_do_not_overflow_on_the_way_to_their_mean():
    batch = batch_of(np.ones(1024))
    assert batch.weighted_mean(torch.full((1024,), 100.0, dtype=torch.float16)).item() == pytest.approx(100, rel=1e-2)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1)])
def test_losses_of_another_shape_are_refused_with_what_to_do(shape):
    with pytest.raises(sampler.ConfigError, match=r'shape \(3,\), got .*reduction="none"'):
        batch_of(WEIGHTS).weighted_mean(torch.ones(shape))
    with pytest.raises(sampler.ConfigError, match="report needs 3 losses, one per example"):
        batch_of(WEIGHTS).report(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_report_takes_losses_of_any_dtype_and_those_that_need_a_gradient(dtype):
    reported = []
    _, losses = losses_of(dtype=dtype)
    batch_of(WEIGHTS, report=lambda rows: reported.append(rows.resolve())).report(losses)
    assert reported[0].losses.dtype == np.float32
    assert reported[0].losses.tolist() == [1.0, 4.0, 9.0]
    assert (reported[0].batch_id, reported[0].step) == (1, 23)


def test_rows_whose_gradient_could_not_be_told_are_left_out_of_the_report():
    reported = []
    batch_of(WEIGHTS, report=lambda rows: reported.append(rows.resolve())).report([1.0, 2.0, 3.0], NotingSketcher())
    assert reported[0].example_ids.tolist() == [0, 2]
    assert reported[0].losses.tolist() == [1.0, 3.0]
    assert reported[0].sketches.shape == (2, 4)


def test_the_arrays_of_a_batch_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        batch_of(WEIGHTS).weights[0] = 1


class CapturingSketcher(NotingSketcher):
    """Its sketches can't be had before `there` is set."""

    def __init__(self) -> None:
        self.there = False

    def capture(self, coefficients, /):
        taken = self.take(coefficients)

        def resolve():
            assert self.there
            return taken

        return SimpleNamespace(resolve=resolve)


def test_a_report_waits_for_no_sketch():
    reported, sketcher = [], CapturingSketcher()
    batch_of(WEIGHTS, report=reported.append).report(torch.ones(3), sketcher)
    with pytest.raises(sampler.SketchError, match="could not be taken"):
        reported[0].resolve()
    sketcher.there = True
    assert reported[0].resolve().sketches.shape == (2, 4)
    assert reported[0].resolve().unusable == 1


class SelfSketcher:
    """Hands over itself, with what the latest batch left in it."""

    def backward(self, value: float) -> None:
        self.sketches = np.full((3, 4), value, np.float16)
        self.norms = np.full(3, value, np.float32)
        self.usable = np.ones(3, bool)

    def take(self, _coefficients, /):
        return self


def test_sketches_are_reported_as_they_were_though_the_sketcher_has_gone_on():
    reported, sketcher = [], SelfSketcher()
    sketcher.backward(1.0)
    batch_of(WEIGHTS, report=reported.append).report(torch.ones(3), sketcher)
    sketcher.backward(2.0)
    rows = reported[0].resolve()
    assert np.unique(rows.sketches).tolist() == np.unique(rows.norms).tolist() == [1.0]


@pytest.mark.parametrize("losses", [torch.ones(3), np.ones(3, np.float32)], ids=["tensor", "array"])
def test_losses_that_are_changed_after_the_report_are_reported_as_they_were(losses):
    reported = []
    batch_of(WEIGHTS, report=reported.append).report(losses)
    losses += 1
    assert reported[0].resolve().losses.tolist() == [1, 1, 1]


def test_a_missing_backward_pass_is_an_error_of_the_report_itself():
    sketcher = sampler.GradientSketcher(torch.nn.Linear(2, 1), 4)
    with sketcher, pytest.raises(sampler.SketchError, match="no backward pass"):
        batch_of(WEIGHTS).report(torch.ones(3), sketcher)


def test_sketches_resolved_in_another_thread_later_are_those_of_take():
    model, x = torch.nn.Linear(2, 1), torch.randn(3, 2)
    resolved = []
    with sampler.GradientSketcher(model, 4, dtype=np.float32) as sketcher:
        model(x).square().mean().backward()
        coefficients = torch.full((3,), 1 / 3)
        captured = sketcher.capture(coefficients)
        model(x).square().mean().backward()
        taken = sketcher.take(np.full(3, 1 / 3))
        assert sketcher.audit() < 1e-5
        coefficients.zero_()
        thread = threading.Thread(target=lambda: resolved.append(captured.resolve()))
        thread.start()
        thread.join()
    for name in ("sketches", "norms", "usable"):
        np.testing.assert_array_equal(getattr(resolved[0], name), getattr(taken, name))


@pytest.mark.parametrize("dtype", [np.float64, np.int8, ">f2", torch.float16, None])
def test_a_sketcher_of_another_dtype_is_refused(dtype):
    with pytest.raises(sampler.ConfigError, match=r"dtype must be numpy\.float16 or numpy\.float32"):
        sampler.GradientSketcher(torch.nn.Linear(2, 1), 4, dtype=dtype)
