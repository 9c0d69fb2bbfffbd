"""The example of robustness by optimiser runs as it is printed, and its parts reach what the theory says."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pytest

from sampler_client.robust.margins import margin
from trainer_examples import robust, robust_sampling, separators


def test_a_few_steps_of_everything(tmp_path, capsys):
    path = tmp_path / "robust.json"
    rows = robust.main(seeds=1, steps=20, json=path)
    written = json.loads(path.read_text())
    assert written["rows"] == rows
    instances = {f"synthetic, d/n = {ratio}": 1 for ratio in robust.RATIOS} | {"pairs of digits": len(robust.PAIRS)}
    trained = [row for row in rows if row["family"] in instances]
    assert [(row["family"], row["instance"], row["method"]) for row in trained] == [
        (family, i, method) for family, count in instances.items() for i in range(count) for method in separators.THEORY
    ]
    for row in trained:
        kinds = ["margin", "risk_below", "risk_above"]
        pair = row["family"] == "pairs of digits"
        figures = {f"{kind}_{attack}" for kind in kinds + ["unseen_risk"] * pair for attack in separators.ATTACKS}
        assert set(row) == figures | {"family", "instance", "problem", "method", "theory"} | (
            {"unseen_error"} if pair else set()
        )
        assert all(row[f"margin_{attack}"] <= 1.001 for attack in separators.ATTACKS)
    undivided, sampled = ([row for row in rows if row["family"] == name] for name in ("undivided", "sampling"))
    assert len(rows) == len(trained) + len(undivided) + len(sampled)
    assert [row["method"] for row in undivided] == list(separators.OPTIMISERS)
    assert [(row["method"], row["steps"]) for row in sampled] == [
        (method, steps) for method in robust_sampling.POLICIES for steps in (1, 20)
    ]
    tenth = {row["method"]: row for row in trained if row["family"] == "synthetic, d/n = 10"}
    of_optimisers = {"gd": "gradient descent", "cd": "coordinate descent", "signgd": "sign gradient descent"}
    for short, method in of_optimisers.items():
        figure = f"margin_{separators.THEORY[method]}"
        assert written["headline"][f"margin_{short}"] == tenth[method][figure] > 0.4
        of_pairs = [row[figure] for row in trained if row["family"] == "pairs of digits" and row["method"] == method]
        assert written["headline"][f"margin_of_pairs_{short}"] == pytest.approx(sum(of_pairs) / len(of_pairs), rel=1e-3)
    assert "convolutional net" in capsys.readouterr().out


def test_a_few_hundred_steps_resist_the_attack_that_the_theory_says():
    problem = separators.synthetic(10, seed=1)
    rows = {
        method: robust.measured(problem, method, weight)
        for method, weight in robust.trained(problem, steps=300, seed=0)
    }
    for method in (*separators.OPTIMISERS, *separators.NETS):
        shares = {attack: rows[method][f"margin_{attack}"] for attack in separators.ATTACKS}
        assert max(shares, key=shares.__getitem__) == rows[method]["theory"] == separators.THEORY[method]
        assert shares.pop(separators.THEORY[method]) > 0.9 > max(shares.values()) + 0.1, method
    for attack, row in product(separators.ATTACKS, rows.values()):
        assert (row[f"risk_below_{attack}"] == 0) is (row[f"margin_{attack}"] >= robust.BELOW)
        assert row[f"risk_above_{attack}"] > 0, "nothing withstands more than the largest margin"


def test_the_table_shows_means_marks_the_largest_and_underlines_what_the_theory_says(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [
        {"method": method}
        | {f"{kind}_{a}": rng.random() for kind in ("margin", "risk_below") for a in separators.ATTACKS}
        for _ in range(2)
        for method in separators.THEORY
    ]
    printed = []
    monkeypatch.setattr(robust.console, "print", printed.append)
    robust.show("family", rows)
    methods, *columns = ([*column.cells] for column in printed[0].columns)
    assert methods == list(separators.THEORY)
    for attack, cells in zip(separators.ATTACKS, columns, strict=True):
        means = [np.mean([row[f"margin_{attack}"] for row in rows if row["method"] == method]) for method in methods]
        shown = [float(re.sub(r"\[.*?\]", "", cell).split()[0]) for cell in cells]
        assert shown == pytest.approx(means, abs=5e-4)
        assert ["[bold]" in cell for cell in cells] == [mean == max(means) for mean in means]
        assert ["[underline]" in cell for cell in cells] == [separators.THEORY[method] == attack for method in methods]


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
