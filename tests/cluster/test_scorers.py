"""Scorers on Ray: published weights keep the table fresh, and what happens to a scorer happens to nobody else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import torch

import sampler_client as sampler
from sampler_client._pb import sampler_pb2 as pb
from sampler_service.embedded import RunningService, running_service
from sampler_service.runtime.ray_scorers import RayDesk, ScorerHost
from tests import scoring_factories as factories
from tests.cluster.support import PATIENT, actors, cli, epoch, until

SCORING = "tests.scoring_factories:numbers"


@pytest.fixture(scope="module")
def scored() -> Iterator[RunningService]:
    """A service with one scorer for each run."""
    with running_service(arguments=("--scorers", "1", "--scoring", SCORING)) as service:
        yield service


def statistics(service: RunningService, run: str) -> pb.GetStatisticsResponse:
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        return client.statistics(run)


def scorers(service: RunningService) -> list[psutil.Process]:
    return actors(service.pid, "ScorerHost")


def ended(service: RunningService, run: str) -> None:
    """Close a run, and see its scorers and its weights go."""
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        client.close_run(run)
    left = ("ScorerHost", "WeightsStore")
    until(lambda: not any(actors(service.pid, title) for title in left), "no scorer and no weights left", 20)


def test_published_weights_refresh_all_examples_with_the_scores_of_the_trainer_s_own_scorer(attach, scored):
    ageless = {"gate": 1, "alpha": 0.5, "half_life": 1e6}  # what age does to the rates is another test's
    loader = attach("refreshed", address=scored, policy="importance", policy_options=ageless)
    assert not scorers(scored), "they start with the first weights"
    model = factories.model(1)
    epoch(loader)
    loader.publish(model)
    epoch(loader)
    until(lambda: statistics(scored, "refreshed").scored_rows == 64, "all examples to be scored")
    said = statistics(scored, "refreshed")
    assert (said.weights_version, said.weights_step, said.scorers, said.scorer_error) == (1, 4, 1, "")
    assert (said.reported_rows, said.sketch_coverage, dict(said.rejected_rows)) == (2 * 64, 1.0, {})
    loader.fence()
    norms = sampler.LastLayerScorer(model)(factories.records().tensors).norms.numpy()
    chance_n = 0.5 * norms / norms.sum() + 0.5 / 64
    seen = set()
    for _ in range(3):
        for _, batch in loader:
            assert batch.policy == "importance"
            np.testing.assert_allclose(batch.probabilities, chance_n[batch.example_ids], rtol=1e-4)
            seen.update(batch.example_ids.tolist())
    assert len(seen) > 32
    loader.publish(factories.model(2))
    until(lambda: statistics(scored, "refreshed").scored_rows == 2 * 64, "all examples to be scored once more")
    loader.fence()
    other = sampler.LastLayerScorer(factories.model(2))(factories.records().tensors).norms.numpy()
    _, batch = next(iter(loader))
    np.testing.assert_allclose(
        batch.probabilities, (0.5 * other / other.sum() + 0.5 / 64)[batch.example_ids], rtol=1e-4
    )
    shown = cli("status", scored).stdout
    assert "refreshed: 1 scorers at work, 128 rows scored, weights 2 of step" in shown
    ended(scored, "refreshed")


def test_a_killed_scorer_comes_back_by_itself_and_training_notices_nothing(attach, scored):
    loader = attach("killed", address=scored, policy="importance")
    loader.publish(factories.model(1), step=0)
    until(lambda: statistics(scored, "killed").scored_rows == 64, "all examples to be scored")
    (scorer,) = scorers(scored)
    assert scorer.nice() > max(process.nice() for process in actors(scored.pid, "RunHost"))
    scorer.kill()
    for _ in range(3):
        assert len(epoch(loader)) == 64
    loader.publish(factories.model(2))
    loader.flush()
    until(lambda: statistics(scored, "killed").scored_rows == 2 * 64, "the scorer to be back at work")
    assert [process.pid for process in scorers(scored)] != [scorer.pid]
    assert statistics(scored, "killed").scorer_error == ""
    ended(scored, "killed")


def test_a_killed_run_actor_and_killed_weights_are_made_good(attach, scored):
    loader = attach("host-and-weights", address=scored, policy="importance")
    loader.publish(factories.model(1), step=0)
    until(lambda: statistics(scored, "host-and-weights").scored_rows == 64, "all examples to be scored")
    for title in ("RunHost", "WeightsStore"):
        (process,) = actors(scored.pid, title)
        process.kill()
    epoch(loader)
    loader.publish(factories.model(2))
    loader.flush()
    until(lambda: statistics(scored, "host-and-weights").weights_version == 2, "the version to have risen")
    until(lambda: statistics(scored, "host-and-weights").scored_rows >= 64, "all examples to be scored again")
    ended(scored, "host-and-weights")


def test_weights_of_many_parts_arrive_whole(attach, scored):
    """Larger than what travels at once, so that parts and their order matter; they are refused by their names."""
    loader = attach("large", address=scored, policy="shuffle")
    loader.publish(torch.nn.Linear(3000, 3000))  # 36 MB
    loader.flush()
    until(lambda: statistics(scored, "large").scorer_error, "the weights to be looked at")
    assert "weights 1 can't be loaded: the published weights don't fit" in statistics(scored, "large").scorer_error
    assert "they lack 0.bias, 0.weight, 2.bias and 1 more; they have, unknown to the model, bias, weight" in (
        statistics(scored, "large").scorer_error
    )
    loader.publish(factories.model(1))
    with pytest.raises(sampler.ScoringError, match=r"they lack 0\.bias"):
        loader.flush()
    until(lambda: statistics(scored, "large").scored_rows == 64, "weights that fit to be scored")
    assert statistics(scored, "large").scorer_error == ""
    ended(scored, "large")


def test_without_scorers_publishing_is_refused_with_what_to_do(attach, service):
    loader = attach("without", policy="shuffle")
    loader.publish(factories.model())
    with pytest.raises(sampler.Stale, match="this service has no scorers"):
        loader.flush()
    assert sorted(epoch(loader)) == list(range(64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scorers", "1"), "ConfigError: scorers is 1 and scoring '': give both"),
        (("--scoring", SCORING), f"ConfigError: scorers is 0 and scoring '{SCORING}': give both"),
        (("--scorers", "1", "--scoring", "nowhere"), "ConfigError: --scoring must be package.module:factory"),
        (("--scorers", "1", "--scoring", "no.where:here"), "No module named 'no'; it must be importable"),
        (("--scorers", "1", "--scoring", "tests.scoring_factories:EXAMPLES"), "is a int, not a function"),
    ],
    ids=["no scoring", "no scorers", "no name", "no module", "no function"],
)
def test_scoring_that_can_not_be_is_said_before_anything_starts(arguments, words):
    refused = cli("up", "--port", "0", *arguments)
    assert refused.returncode == 1
    said = refused.stdout + refused.stderr
    assert words in said and "Traceback" not in said


def test_code_that_ends_the_scorer_s_thread_ends_its_process_so_that_it_is_started_again(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set() if code == 1 else None)

    def make():
        raise SystemExit("from the operator's code")

    ScorerHost("scorer 0", make, RayDesk("nowhere", "no run", "no weights", 1.0), polite=False)
    assert ended.wait(5)
