"""What `auto` picks, and the reason that it gives; wrong labels are in `test_modes.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sampler_service.policies import Auto, Pick
from sampler_service.types import NO_CLUSTER, TableView

N = 2000
RNG = np.random.default_rng(0)
UNKNOWN = TableView(
    loss_n=np.full(N, np.nan, np.float32),
    norm_n=np.full(N, np.nan, np.float32),
    step_n=np.full(N, 100),
    cluster_n=np.full(N, NO_CLUSTER, np.int32),
    cluster_sse_k=np.empty(0),
    epoch_steps=100,
    step=100,
)
LOSSES = replace(UNKNOWN, loss_n=RNG.exponential(size=N).astype(np.float32))
LEARNT = replace(LOSSES, loss_n=LOSSES.loss_n**3)
NORMS = replace(LOSSES, norm_n=RNG.lognormal(size=N).astype(np.float32))


def clustered(scatter: float) -> TableView:
    """Norms, and two clusters of equal size, each with a scatter of 100, in one of `scatter`: 200 / scatter is the
    ratio of proportional draws, and of equal ones, too."""
    cluster_n = (np.arange(N) % 2).astype(np.int32)
    return replace(NORMS, cluster_n=cluster_n, cluster_sse_k=np.array([100.0, 100.0]), cluster_scatter=scatter)


def picked(view: TableView, *, candidates: int = 1, prune: str = "no", **said) -> Pick:
    return Auto(prune=prune).pick(view, candidates=candidates, **({"sketched": False} | said))


@pytest.mark.parametrize(
    ("view", "said", "name", "why"),
    [
        (UNKNOWN, {}, "shuffle", "neither sketches nor gradient norms"),
        (NORMS, {}, "importance", "there are gradient norms"),
        (NORMS, {"sketched": True}, "gradient_clustering", "there are sketches, and their clusters are measured"),
        (
            clustered(2000),
            {"sketched": True},
            "gradient_clustering",
            "gradients are redundant: clusters are predicted to leave 0.10 of a batch's variance",
        ),
        (
            clustered(210),
            {"sketched": True},
            "importance",
            "there are gradient norms, and clusters are predicted to leave 0.95 of a batch's variance",
        ),
        (
            clustered(210),
            {"sketched": True, "ratio": 0.4},
            "gradient_clustering",
            "gradients are redundant: clusters are measured to leave 0.40 of a batch's variance",
        ),
        (
            clustered(2000),
            {"sketched": True, "ratio": 0.97},
            "importance",
            "there are gradient norms, and clusters are measured to leave 0.97 of a batch's variance",
        ),
        (
            replace(clustered(210), norm_n=UNKNOWN.norm_n),
            {"sketched": True},
            "shuffle",
            "there are no gradient norms, and clusters are predicted to leave 0.95 of a batch's variance",
        ),
        (LEARNT, {}, "shuffle", "neither sketches nor gradient norms"),
        (LEARNT, {"prune": "yes"}, "infobatch", "most is learnt"),
        (LOSSES, {"prune": "yes"}, "shuffle", "neither sketches nor gradient norms"),
    ],
)
def test_each_choice_and_its_reason(view, said, name, why):
    pick = picked(view, **said)
    assert pick.policy.name == name and why in pick.why and pick.otherwise is None


@pytest.mark.parametrize(("view", "sketched"), [(UNKNOWN, False), (NORMS, False), (clustered(2000), True)])
def test_a_second_stage_comes_first_and_what_would_be_picked_without_it_stands_in_for_it(view, sketched):
    pick = picked(view, candidates=3, sketched=sketched)
    assert pick.policy.name == "two_stage" and "second stage" in pick.why
    assert pick.otherwise == picked(view, sketched=sketched)


def test_it_is_unbiased_unless_it_may_leave_examples_out():
    assert Auto().unbiased and not Auto(prune="yes").unbiased
