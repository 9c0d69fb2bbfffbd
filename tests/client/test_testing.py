"""The stand-in for a service that users test their training loops with."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest

import sampler_client as sampler
from sampler_client import testing
from sampler_client.testing import FakeSession, fake_attach
from tests.client.conftest import BATCH, STEPS, N


def train(loader, epochs: int) -> list[int]:
    seen = []
    for _ in range(epochs):
        for (ids,), batch in loader:
            assert ids.tolist() == batch.example_ids.tolist()
            losses = ids.double()
            batch.weighted_mean(losses)
            batch.report(losses)
            seen += ids.tolist()
    return seen


def test_the_examples_of_the_module_are_true():
    assert doctest.testmod(testing).failed == 0
    assert doctest.testmod(testing).attempted > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_over_a_fake_sees_every_example_once_an_epoch_and_its_reports_are_kept(plain_loader, workers):
    loader = fake_attach(plain_loader(num_workers=workers))
    seen = train(loader, epochs=2)
    assert sorted(seen[:N]) == sorted(seen[N:]) == list(range(N))
    assert seen[:N] != seen[N:]
    assert loader.sampler.source.rows().tolist() == seen
    assert [report.batch_id for report in loader.sampler.source.reports] == list(range(1, 2 * STEPS + 1))
    assert loader.sampler.source.reports[0].losses.tolist() == seen[:BATCH]


def test_drop_last_is_kept(plain_loader):
    loader = fake_attach(plain_loader(drop_last=True))
    assert len(loader) == STEPS - 1
    assert [len(batch) for _, batch in loader] == [BATCH] * (STEPS - 1)


def test_the_seed_decides_the_order(plain_loader):
    orders = [train(fake_attach(plain_loader(), seed=seed), 1) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_weights_are_those_given(plain_loader):
    weights = np.linspace(0.5, 1.5, N)
    for _, batch in fake_attach(plain_loader(), weights=weights):
        np.testing.assert_array_equal(batch.weights, weights.astype(np.float32)[batch.example_ids])
    with pytest.raises(sampler.ConfigError, match=rf"weights must have the shape \({N},\)"):
        fake_attach(plain_loader(), weights=[1.0])


def test_a_position_can_be_saved_and_restored(plain_loader):
    first, second = fake_attach(plain_loader()), fake_attach(plain_loader())
    running = iter(first)
    seen = [i for _ in range(3) for i in next(running)[1].example_ids.tolist()]
    second.load_state_dict(first.state_dict())
    assert sorted(seen + train(second, 1)) == list(range(N))


def test_a_loader_that_attach_refuses_is_refused(plain_loader):
    with pytest.raises(sampler.ConfigError, match="batch_size=None"):
        fake_attach(plain_loader(batch_size=None, shuffle=False))


def test_it_can_be_closed_flushed_and_fenced(plain_loader):
    with fake_attach(plain_loader()) as loader:
        train(loader, 1)
        loader.flush()
        assert loader.fence() == STEPS
    assert loader.sampler.source.closed


def test_a_fake_session_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from sampler_client.testing import FakeSession; FakeSession(3, 2)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fake_session_is_usable_alone():
    session = FakeSession(4, batch_size=2)
    assert session.start_epoch(0, 0).num_steps == session.steps_per_epoch == 2
    assert len(list(iter(session.next, None))) == 2
    assert session.rows().tolist() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1.5}, r"batch_size must be a whole number, got 1\.5"),
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
    ],
)
def test_a_session_of_no_examples_or_batches_is_refused(settings, words):
    with pytest.raises(sampler.ConfigError, match=words):
        FakeSession(**{"num_examples": 5, "batch_size": 2, **settings})
