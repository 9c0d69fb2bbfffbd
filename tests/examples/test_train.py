"""The training example runs as it is printed, against a service and against the fake, and learns."""

from __future__ import annotations

import numpy as np
import pytest

import sampler_client
from sampler_client.testing import fake_attach
from tests.served import ServedService
from trainer_examples import train
from trainer_examples.data import load

EXAMPLES = len(load().train)


@pytest.mark.usefixtures("prompt_reports")
def test_two_epochs_are_reported_whole_and_the_model_learns(
    served: ServedService, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = train.main(address=served.address, run="digits", policy="gradient_clustering", epochs=2)
    assert accuracy > 0.7
    said = served.service.statistics("digits")
    # The first epoch is a sweep of all examples, the second draws whole batches.
    assert said.reported_rows == said.examples >= 2 * EXAMPLES
    assert said.rejected_rows == {}
    assert (said.active_policy, said.refreshes > 0, said.trainers) == ("gradient_clustering", True, 0)
    assert 0 < said.variance_ratio < 1
    assert "gradient_clustering needs 50 %" in capsys.readouterr().out


def test_the_same_loop_runs_on_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = []

    def attach(loader, address, **_):
        attached.append(fake_attach(loader))
        return attached[0]

    monkeypatch.setattr(sampler_client, "attach", attach, raising=False)
    assert train.main(epochs=2) > 0.7
    source = attached[0].sampler.source
    np.testing.assert_array_equal(np.bincount(source.rows()), np.full(EXAMPLES, 2))
    assert all(report.sketches.shape[1] == train.SKETCH_DIM for report in source.reports)
    assert source.closed
