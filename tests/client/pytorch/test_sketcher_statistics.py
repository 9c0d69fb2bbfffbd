"""What is promised of the projection: unbiased, of known variance, and the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sampler_client.pytorch.projection import canonical_name, gaussian, project
from sampler_client.pytorch.sketcher import GradientSketcher

D = 16
SEEDS = 1500


def gradients(model: nn.Module, x: Tensor) -> np.ndarray:
    """(b, outputs, inputs) of sum(model(x_i)^2) / 2."""
    found = []
    for i in range(len(x)):
        model.zero_grad()
        (model(x[i : i + 1]).square().sum() / 2).backward()
        found.append(next(model.parameters()).grad.flatten(1).numpy().astype(float))
    return np.stack(found)


def draws(model: nn.Module, x: Tensor) -> np.ndarray:
    """Sketches (seeds, b, d) under many seeds."""
    rows = []
    for seed in range(SEEDS):
        with GradientSketcher(model, D, seed=seed, layers="all", norms="sketch", dtype=np.float32) as sketcher:
            (model(x).square().sum() / 2).backward()
            rows.append(sketcher.take(np.ones(len(x))).sketches)
    return np.stack(rows).astype(float)


def rho(gradient: np.ndarray) -> float:
    gram = gradient.T @ gradient
    return float(np.square(gram).sum() / np.trace(gram) ** 2)


@pytest.mark.parametrize(
    ("name", "model", "shape"),
    [
        ("one position", nn.Linear(24, 20, bias=False), (2, 24)),
        ("many positions", nn.Linear(24, 20, bias=False), (2, 32, 24)),
        ("convolution", nn.Conv2d(4, 12, 3, bias=False), (2, 4, 6, 6)),
    ],
)
def test_inner_products_are_unbiased_and_their_variance_is_the_theory_s(
    name: str, model: nn.Module, shape: tuple[int, ...]
):
    torch.manual_seed(0)
    nn.init.normal_(next(model.parameters()))
    x = torch.randn(shape)
    exact = gradients(model, x)
    sketches = draws(model, x)
    flat = exact.reshape(len(exact), -1)
    products = np.einsum("sid,sjd->sij", sketches, sketches)
    scale = np.sqrt(np.outer((flat**2).sum(1), (flat**2).sum(1)))
    # Five standard errors of the mean.
    assert (np.abs(products.mean(0) - flat @ flat.T) < 5 * products.std(0) / SEEDS**0.5 + 1e-6 * scale).all()
    r = rho(exact[0])
    expected = 2 / D + 2 * r / 8 * (1 + 2 / D) if name == "convolution" else (2 + 6 * r) / D
    found = (products[:, 0, 0] / (flat[0] @ flat[0])).var()
    assert found == pytest.approx(expected, rel=0.3)


def test_estimated_norms_are_unbiased():
    torch.manual_seed(0)
    model, x = nn.Conv2d(4, 12, 3, bias=False), torch.randn(1, 4, 6, 6)
    exact = np.linalg.norm(gradients(model, x))
    squares = []
    for seed in range(300):
        with GradientSketcher(model, D, seed=seed, layers="all") as sketcher:
            (model(x).square().sum() / 2).backward()
            squares.append(float(sketcher.take(np.ones(1)).norms[0]) ** 2)
    assert sketcher.norm_forms == {"": "sketch"}
    assert np.mean(squares) == pytest.approx(exact**2, abs=5 * np.std(squares) / 300**0.5)


def test_matrices_are_pinned():  # a stored sketch is worthless once these change
    assert gaussian(0, "layer.weight", "rows", (2, 2)).flatten().tolist() == pytest.approx(PINNED, abs=1e-6)


PINNED = [-0.96022958, -0.45522287, -1.73655558, -0.91535783]


@pytest.mark.parametrize("shape", [(0, 300), (3, 300), (200, 300), (8, 25, 300)])  # the larger ones go to oneDNN
def test_projections_are_products_in_single_precision(shape: tuple[int, ...]):
    rows, matrix, shift = torch.randn(shape), torch.randn(16, 300), torch.randn(16)
    for features in (rows, rows.flip(-1)[..., ::2]):
        columns = matrix[:, : features.shape[-1]]
        exact = features.double() @ columns.double().mT
        torch.testing.assert_close(project(features, columns), exact.float(), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(project(features, columns, shift), (exact + shift).float(), atol=1e-4, rtol=1e-5)


def test_another_process_draws_the_same_matrices():
    code = (
        "from sampler_client.pytorch.projection import gaussian\n"
        "print(gaussian(7, 'a.weight', 'columns', (50, 8)).numpy().tobytes().hex())"
    )
    hashing = {**os.environ, "PYTHONHASHSEED": "1"}  # names must not go through Python's salted hash
    drawn = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=hashing).stdout
    assert drawn.strip() == gaussian(7, "a.weight", "columns", (50, 8)).numpy().tobytes().hex()


def test_every_seed_parameter_and_role_has_its_own_matrix():
    keys = [(s, p, r) for s in (0, 1) for p in ("a.weight", "b.weight") for r in ("rows", "columns")]
    drawn = {gaussian(*key, (3,)).numpy().tobytes() for key in keys}
    assert len(drawn) == len(keys)


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("module.net.0.weight", "net.0.weight"),
        ("_orig_mod.net.0.weight", "net.0.weight"),
        ("module._orig_mod.net.0.weight", "net.0.weight"),
        ("_orig_mod.module.net.0.weight", "net.0.weight"),
        ("net._checkpoint_wrapped_module.0.weight", "net.0.weight"),
        ("_fsdp_wrapped_module.net._fsdp_wrapped_module.0.weight", "net.0.weight"),
        ("net.module.weight", "net.module.weight"),
        ("module", "module"),
        ("", ""),
    ],
)
def test_names_lose_what_wrappers_add(wrapped: str, plain: str):
    assert canonical_name(wrapped) == plain


def test_importing_the_client_does_not_import_torch():
    code = "import sys, sampler_client; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
