"""What a training step says of the choice that made its batch, on answers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.evidence import evidence_of
from sampler_client.pytorch.two_stage.choose import choose

STAGE = pb.Stage(uniform=4.0, proposed=3.0, chosen=1.0)
WEIGHTS = np.array([0.5, 1.0, 2.0], np.float32)


def test_moments_of_gradient_norms_and_of_losses_above_the_least():
    losses = np.array([3.0, 2.0, 1.0], np.float32)
    by_norms = evidence_of(STAGE, WEIGHTS, loss_r=losses, norm_r=np.array([2.0, 1.0, 1.0], np.float32))
    assert by_norms == pb.Evidence(
        rows=3,
        uniform=(0.5 * 4 + 1 + 2) / 3,
        chosen=(1 + 1 + 4) / 3,
        by_norms=True,
        scored_uniform=4.0,
        scored_chosen=1.0,
    )
    by_losses = evidence_of(STAGE, WEIGHTS, loss_r=losses, norm_r=None)
    assert by_losses is not None and not by_losses.by_norms
    assert (by_losses.uniform, by_losses.chosen) == pytest.approx(((0.5 * 4 + 1) / 3, (1 + 1) / 3))


@pytest.mark.parametrize(
    ("losses", "norms"),
    [
        ([1.0, 1.0, 1.0], None),  # all alike: nothing to tell by
        ([1.0, np.nan, 1.0], None),
        ([1.0, np.inf, 1.0], None),
        ([1.0, 2.0, 3.0], [1.0, np.inf, 1.0]),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
    ],
)
def test_values_that_say_nothing_are_no_evidence(losses, norms):
    norm_r = None if norms is None else np.array(norms, np.float32)
    assert evidence_of(STAGE, WEIGHTS, loss_r=np.array(losses, np.float32), norm_r=norm_r) is None


def test_no_rows_are_no_evidence():
    nothing = np.empty(0, np.float32)
    assert evidence_of(STAGE, nothing, loss_r=nothing, norm_r=nothing) is None


def test_on_average_they_are_the_moments_over_all_examples_and_of_the_choice():
    rng = np.random.default_rng(1)
    norm_n, score_n = rng.random(300), rng.random(300) + 0.2
    found = []
    for _ in range(2000):
        ids = rng.integers(300, size=48)
        choice = choose(score_n[ids], np.ones(48), 16, mix=0.3, rng=rng)
        norms = norm_n[ids[choice.index]].astype(np.float32)
        said = evidence_of(STAGE, choice.weights, loss_r=norms, norm_r=norms)
        assert said is not None
        found.append((said.uniform, said.chosen))
    uniform, chosen = np.mean(found, axis=0)
    assert uniform == pytest.approx((norm_n**2).mean(), rel=0.03)
    share_n = 0.7 * score_n / score_n.mean() + 0.3  # chances, but for their scale in each batch
    assert chosen == pytest.approx((norm_n**2 / share_n).mean(), rel=0.05)
