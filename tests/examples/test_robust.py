"""The example of robustness by optimiser runs as it is printed, and its parts reach what the theory says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sampler_client.robust.margins import margin
from trainer_examples import robust, robust_sampling, separators


def test_a_few_steps_of_everything(tmp_path, capsys):
    path = tmp_path / "robust.json"
    rows = robust.main(seeds=1, steps=20, json=path)
    families = {row["family"] for row in rows}
    assert families == {*(f"synthetic, d/n = {r}" for r in robust.RATIOS), "pairs of digits", "undivided", "sampling"}
    assert {row["method"] for row in rows if "theory" in row} == set(separators.THEORY)
    assert all(row[f"margin_{attack}"] <= 1.001 for row in rows if "theory" in row for attack in separators.ATTACKS)
    assert json.loads(path.read_text())["headline"]["margin_gd"] > 0
    assert "convolutional net" in capsys.readouterr().out


@pytest.mark.parametrize("name", separators.OPTIMISERS)
def test_each_optimiser_comes_within_a_twentieth_of_the_largest_margin_of_its_norm(name):
    problem = separators.synthetic(10, seed=0)
    weight = separators.descend(problem, name, steps=3000)
    shares = {a: margin(weight, problem.x, problem.y, a) / problem.best[a] for a in separators.ATTACKS}
    assert max(shares, key=shares.__getitem__) == separators.THEORY[name]
    assert shares[separators.THEORY[name]] >= 0.95


def test_what_is_sampled_does_not_change_the_limit():
    problem = separators.synthetic(4, seed=0)
    x, y = problem.x.numpy(), problem.y.numpy()
    best = problem.direction.numpy()
    for name in robust_sampling.POLICIES:
        weight = robust_sampling.descend(x, y, name, epochs=2000, factor=1.0, seed=0)
        cosine = weight @ best / np.linalg.norm(weight) / np.linalg.norm(best)
        assert cosine > 0.995, name
