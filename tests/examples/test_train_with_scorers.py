"""The example with scorers runs as it is printed, with the scoring factory that is printed with it, and learns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from sampler_client.session import Session
from sampler_service.scoring.worker import make_scorer
from sampler_service.service import InProcessService
from tests.served import ServedService
from trainer_examples import train_with_scorers
from trainer_examples.data import load

EXAMPLES = len(load().train)


@pytest.fixture
def scored() -> Iterator[ServedService]:
    served = ServedService(InProcessService(make_scorer=partial(make_scorer, "trainer_examples.scoring:digits")))
    yield served
    served.stop()


@pytest.fixture
def prompt_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are with the service before the next step, so that what it knows is not a matter of luck."""
    publish = Session.publish

    def publish_and_wait(session: Session, *args) -> None:
        publish(session, *args)
        session.flush()

    monkeypatch.setattr(Session, "publish", publish_and_wait)


@pytest.mark.usefixtures("prompt_publishes")
def test_scores_alone_bring_the_policy_up_and_the_model_learns(scored: ServedService, capsys):
    accuracy = train_with_scorers.main(address=scored.address, run="digits", epochs=10)
    assert accuracy > 0.8
    said = scored.service.statistics("digits")
    assert (said.active_policy, said.sketch_coverage, said.scorer_error) == ("importance", 1.0, "")
    # In process every version scores every example.
    assert said.weights_version >= 23
    assert said.scored_rows == said.weights_version * EXAMPLES
    assert said.rejected_rows == {}
    assert said.p99_age_steps <= 10, "no sketch is older than the latest weights"
    assert "rows scored, sketches" in capsys.readouterr().out


def test_the_comparison_without_scorers_sketches_in_the_backward_pass(scored: ServedService):
    train_with_scorers.main(address=scored.address, run="digits", epochs=2, publish_every=0)
    said = scored.service.statistics("digits")
    assert (said.weights_version, said.scored_rows) == (0, 0)
    assert said.reported_rows > EXAMPLES
    assert said.sketch_coverage == 1.0


def test_another_dataset_is_not_scored_by_the_factory():
    with pytest.raises(ValueError, match="dataset 'mnist' is not scored here"):
        make_scorer("trainer_examples.scoring:digits", "mnist", EXAMPLES, 64)
