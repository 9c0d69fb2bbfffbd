"""Scores in a run: who is given what, what a lost scorer loses, and what is never overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_service import refreshes as refreshes_module
from sampler_service.datasets import Dataset
from sampler_service.errors import Unavailable
from sampler_service.sampler import Sampler
from sampler_service.scorers import BACKOFF_S, FRUITLESS, MOST_FAILURES, MOST_IDLE_S, ScorerLoop
from sampler_service.scorers import IDLE_S as IDLE_PAUSE_S
from sampler_service.scores import ANSWER_S, FAILED_S, IDLE_S, SILENT_S, WORK_S
from sampler_service.types import Scored, ScoreReport
from tests.support import DIM, Clock, gradients, join_all, make_sampler

N = 40
NOTHING = np.empty(0, np.int64)


def scored(ids: np.ndarray, version: int = 1, step: int = 0, scorer: str = "a", **changes) -> ScoreReport:
    sketches = gradients(ids)
    rows = {"norms": np.linalg.norm(sketches, axis=1).astype(np.float32), "sketches": sketches} | changes
    return ScoreReport(
        scorer=scorer, version=version, step=step, example_ids=ids, scored=Scored(**rows), failed_ids=NOTHING
    )


def published(clock: Clock | None = None, **changes):
    sampler = make_sampler(N, clock, **changes)
    sampler.published(1, 0)
    return sampler


def ask(sampler, scorer: str = "a", count: int = 10, version: int = 1, step: int = 0) -> set[int]:
    return set(sampler.to_score(scorer, version, step, count).example_ids.tolist())


def test_no_two_scorers_get_the_same_examples_and_each_example_comes_once():
    sampler, seen = published(), []
    for turn in range(4):
        ids = sampler.to_score(f"scorer {turn}", 1, 0, 10).example_ids
        seen += ids.tolist()
    assert sorted(seen) == list(range(N))
    assert not ask(sampler, "scorer 4")
    assert sampler.statistics().scorers == 5


def test_work_of_a_scorer_that_is_gone_goes_to_others_after_a_while():
    clock = Clock()
    sampler = published(clock)
    lost = ask(sampler, "a")
    sampler.take_scores(scored(np.array(sorted(ask(sampler, "b", 30))), scorer="b"))
    assert not ask(sampler, "b")
    clock.advance(WORK_S - 1)
    assert not ask(sampler, "b")
    clock.advance(1 + IDLE_S)
    assert ask(sampler, "b", N) == lost
    assert sampler.statistics().scorers == 1  # the other has been silent for too long
    clock.advance(SILENT_S + 1)
    assert sampler.statistics().scorers == 0


def test_a_scorer_that_asks_again_has_done_with_what_it_had():
    clock = Clock()
    sampler = published(clock)
    first = ask(sampler, "a", N)
    assert len(first) == N
    clock.advance(10)  # it was killed, and is back
    assert ask(sampler, "a", N) == first


def test_what_was_scored_by_these_weights_is_due_again_with_the_next_ones():
    sampler = published()
    sampler.take_scores(scored(np.array(sorted(ask(sampler, count=N)))))
    assert not ask(sampler)
    sampler.published(2, 0)  # of the same step
    work = sampler.to_score("a", 1, 0, 10)
    assert (len(work.example_ids), work.version) == (0, 2), "a scorer is told to fetch the newer weights first"
    assert len(ask(sampler, version=2, count=N)) == N


def test_examples_that_failed_are_left_alone_for_a_while_and_the_error_until_a_success():
    clock = Clock()
    sampler = published(clock)
    bad = np.array(sorted(ask(sampler)))
    report = scored(NOTHING)
    sampler.take_scores(
        ScoreReport(
            scorer="a",
            version=1,
            step=0,
            example_ids=NOTHING,
            scored=report.scored,
            failed_ids=bad,
            error="it broke",
        )
    )
    said = sampler.statistics()
    assert (said.scorer_error, said.rejected_rows, said.scored_rows) == ("it broke", {"scoring_failed": 10}, 0)
    rest = ask(sampler, count=N)
    assert rest == set(range(N)) - set(bad.tolist())
    sampler.take_scores(scored(np.array(sorted(rest))))
    assert sampler.statistics().scorer_error == ""
    clock.advance(FAILED_S + 1)
    assert ask(sampler, count=N) == set(bad.tolist())


def test_the_error_of_newer_weights_outlives_a_success_of_older_ones():
    sampler = published()
    ids = np.array(sorted(ask(sampler)))
    sampler.published(2, 1)
    failed = scored(NOTHING, version=2, scorer="b")
    sampler.take_scores(
        ScoreReport(
            scorer="b", version=2, step=1, example_ids=NOTHING, scored=failed.scored, failed_ids=NOTHING, error="misfit"
        )
    )
    sampler.take_scores(scored(ids))
    said = sampler.statistics()
    assert (said.scorer_error, said.scored_rows, said.weights_version) == ("misfit", 10, 2)


def test_a_score_never_overwrites_a_trainer_s_newer_score():
    sampler = make_sampler(N, policy="two_stage", candidates=2)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    batch = trainer.take(3).batches[2]
    trainer.report(batch, scores=True, norms=np.full(len(batch.rows), 77, np.float32))
    ids = np.unique(batch.rows.example_ids)
    sampler.published(1, 1)  # the batch was of step 2
    sampler.take_scores(scored(np.arange(N), step=1))
    assert (sampler._table.norm_n[ids] == 77).all()
    assert sampler._table.gradient_step_n[ids].tolist() == [2] * len(ids)
    assert sampler.statistics().rejected_rows["old"] == len(ids)
    assert np.isfinite(sampler._table.norm_n).all()


def test_scores_are_not_measured_as_if_they_had_been_drawn():
    sampler = published(policy="gradient_clustering", num_clusters=4)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(4)
    for version in range(1, 40):
        sampler.published(version, 0)
        sampler.take_scores(scored(np.array(sorted(ask(sampler, count=N, version=version))), version=version))
    assert sampler._monitor.num_rows == 0
    assert sampler.refresh_due()
    sampler.refresh()
    assert sampler.statistics().num_clusters == 4


def test_the_run_hears_of_its_weights_from_a_scorer_after_a_restart():
    sampler = make_sampler(N)
    sampler.take_scores(scored(np.array(sorted(ask(sampler, version=7, step=3, count=N))), version=7, step=3))
    said = sampler.statistics()
    assert (said.weights_version, said.weights_step, said.scored_rows) == (7, 3, N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    trainer.report(batch, step=4)
    assert sampler.statistics().rejected_rows == {"other_unit": 4}, "as before the restart"


def sketched_by_a_trainer(sampler):
    """Every example reported once with a sketcher's norms, which are large; clusters are made of its sketches."""
    (trainer,) = join_all(sampler)
    trainer.start(0)
    for batch in trainer.drain():
        trainer.report(batch, norms=np.full(len(batch.rows), 1e6, np.float32))
    sampler.refresh()
    return trainer


def restarted(sampler):
    """Another life of a run over the shards that it had."""
    other = Sampler(sampler.config, sampler._shards, clock=Clock())
    other.recover()
    return other


FIRST_WORDS = {
    "the gateway": lambda sampler: sampler.published(1, 3),
    "a scorer asks": lambda sampler: sampler.to_score("a", 1, 3, 10),
    "a scorer answers": lambda sampler: sampler.take_scores(scored(np.arange(4), step=3)),
}


@pytest.mark.parametrize("word", FIRST_WORDS.values(), ids=FIRST_WORDS.keys())
def test_whoever_speaks_first_of_weights_ends_the_time_of_sketchers(word):
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=4)
    trainer = sketched_by_a_trainer(sampler)
    assert trainer.start(1).reason == ""
    trainer.report(trainer.take(1).batches[0])
    assert sampler._monitor.num_rows and sampler._rates.sketched
    word(sampler)
    assert not (sampler._table.norm_n == 1e6).any()
    assert sampler._monitor.num_rows == 0 and not sampler._rates.sketched
    known = np.isfinite(sampler._table.norm_n)
    assert sampler._shards.sketched() == known.sum() in (0, 4)
    assert not (sampler._shards.columns().norm_n == 1e6).any()
    assert sampler.statistics().num_clusters == 0
    assert "of clustered sketches are fresh" in trainer.start(2).reason
    assert not sampler.refresh_due(), "nothing is left to make clusters of"
    FIRST_WORDS["the gateway"](sampler)
    sampler.take_scores(scored(np.arange(N), step=3))
    FIRST_WORDS["the gateway"](sampler)
    assert np.isfinite(sampler._table.norm_n).all(), "what scorers said stays"
    assert sampler.refresh_due()
    sampler.refresh()
    assert sampler.statistics().num_clusters == 4


def test_clusters_of_forgotten_sketches_are_not_installed(monkeypatch):
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=4)
    sketched_by_a_trainer(sampler)
    slow = refreshes_module.recluster

    def recluster(*args, **options):
        partition = slow(*args, **options)
        sampler.published(1, 3)
        return partition

    monkeypatch.setattr(refreshes_module, "recluster", recluster)
    sampler.refresh()
    assert sampler.statistics().num_clusters == 0


def test_after_a_restart_scorers_norms_are_taken_back_and_nobody_forgets_them():
    sampler = make_sampler(N)
    sketched_by_a_trainer(sampler)
    sampler.published(1, 3)
    sampler.take_scores(scored(np.arange(10), step=3))
    for word in (lambda s: s.published(2, 4), lambda s: ask(s, version=1, step=3)):
        other = restarted(sampler)
        word(other)
        norms = np.linalg.norm(gradients(np.arange(10)), axis=1)
        np.testing.assert_allclose(other._table.norm_n[:10], norms, rtol=1e-5)
        assert np.isnan(other._table.norm_n[10:]).all(), "what the sketcher said stays forgotten"
        assert not other._rates.sketched, "so auto would take clusters that nobody measures"
    (trainer,) = join_all(other)
    trainer.start(0)
    trainer.report(trainer.take(1).batches[0], step=5)
    assert other.statistics().rejected_rows == {"other_unit": 4}


def test_a_restart_without_scorers_takes_the_sketchers_norms_back():
    sampler = make_sampler(N)
    sketched_by_a_trainer(sampler)
    other = restarted(sampler)
    assert (other._table.norm_n == 1e6).all() and other._rates.sketched
    other.published(1, 3)
    assert np.isnan(other._table.norm_n).all()


def test_what_a_scorer_did_may_be_the_first_that_a_run_hears_after_a_restart():
    sampler = make_sampler(N)
    sampler.take_scores(scored(np.arange(4), version=7, step=3))
    said = sampler.statistics()
    assert (said.weights_version, said.weights_step, said.scored_rows) == (7, 3, 4)
    assert len(ask(sampler, version=7, step=3, count=N)) == N - 4


def test_a_scorer_s_rows_make_no_loss_look_fresh_and_a_late_report_is_not_old_for_them():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    first, second = (trainer.take_acked(1).batches[0] for _ in range(2))
    trainer.report(first, norms=None, sketches=None, step=1)
    sampler.published(1, 9)
    sampler.take_scores(scored(np.arange(N), step=9))
    assert sampler._table.step_n[first.rows.example_ids].tolist() == [1] * 4
    trainer.report(second, norms=None, sketches=None, step=2)
    assert sampler.statistics().rejected_rows == {}
    assert np.isfinite(sampler._table.loss_n[second.rows.example_ids]).all()
    assert sampler._table.gradient_step_n.tolist() == [9] * N


def test_rows_without_a_usable_score_rest_longer_each_time_and_the_others_go_on():
    clock = Clock()
    sampler = published(clock)
    bad, version, tried = {1, 2, 3}, 1, []
    for _ in range(300):  # ten minutes, each with all there is to do
        version += 1
        sampler.published(version, 0)
        ids = np.array(sorted(ask(sampler, version=version, count=N)))
        assert set(range(N)) - set(ids.tolist()) <= bad
        norms = np.where(np.isin(ids, list(bad)), np.nan, 1).astype(np.float32)
        sampler.take_scores(scored(ids, version=version, norms=norms, sketches=None))
        tried += [clock.now - 1000.0] if bad <= set(ids.tolist()) else []
        clock.advance(2.0)
    assert tried == [0, FAILED_S, 3 * FAILED_S, 7 * FAILED_S]
    assert sampler.statistics().rejected_rows == {"nan": 3 * 4}
    clock.advance(100 * FAILED_S)
    sampler.published(version + 1, 0)
    sampler.take_scores(scored(np.arange(N), version=version + 1))  # they are mended
    sampler.published(version + 2, 0)
    assert len(ask(sampler, version=version + 2, count=N)) == N


def test_scorers_that_ask_while_another_s_work_is_chosen_come_back_later():
    sampler = published()
    with sampler._choosing:
        assert not ask(sampler)
    assert ask(sampler)


def test_that_no_scorer_answers_is_said_after_a_while_and_is_no_failure():
    clock = Clock()
    sampler = make_sampler(N, clock)
    for version in range(1, 4):
        assert sampler.published(version, 10 * version, 2).scorer_error == ""
        assert sampler.statistics().scorer_error == ""
        clock.advance(ANSWER_S / 2 - 1)
    clock.advance(5)
    said = sampler.statistics().scorer_error
    assert said.startswith("0 of 2 scorers have answered since the weights of step 30 were published")
    assert sampler.published(4, 40, 2).scorer_error == "", "a trainer is told of failures alone"
    ask(sampler, version=0, count=0)
    assert sampler.statistics().scorer_error == ""


def test_ages_are_those_of_gradients_and_not_of_losses():
    sampler = published()
    (trainer,) = join_all(sampler)
    trainer.start(0)
    assert np.isnan(sampler.statistics().median_age_steps)
    sampler.take_scores(scored(np.arange(N)))
    for step, batch in enumerate(trainer.drain()):
        trainer.report(batch, norms=None, sketches=None, step=step + 1)
    said = sampler.statistics()
    assert said.median_age_steps == said.p99_age_steps == 10
    assert said.rejected_rows == {}


def test_a_policy_that_needs_norms_stands_aside_when_they_are_old_whatever_losses_were_reported():
    sampler = published(policy="importance", policy_options={"gate": "1"}, fresh_epochs=2.0)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    sampler.take_scores(scored(np.arange(N)))
    reasons = []
    for epoch in range(5):
        for batch in trainer.drain():
            trainer.report(batch, norms=None, sketches=None)
        reasons.append(trainer.start(epoch + 1).reason)
    assert reasons[0] == ""
    assert "0 % of gradient norms are fresh" in reasons[-1]


# --- the loop ---


class Model:
    """A RowScorer that does as it is told."""

    batch_size = 8

    def __init__(self) -> None:
        self.loaded: list[bytes] = []
        self.fail = self.misfit = False
        self.unreadable: set[int] = set()
        self.nan: set[int] = set()
        self.passes = 0

    def load(self, weights: bytes) -> None:
        self.loaded.append(weights)
        if self.misfit:
            raise ValueError("misfit")

    def score(self, example_ids):
        self.passes += 1
        if self.fail or self.unreadable & set(example_ids.tolist()):
            raise ZeroDivisionError("broken")
        norms = np.where(np.isin(example_ids, list(self.nan)), np.nan, 1).astype(np.float32)
        return Scored(norms=norms, sketches=np.ones((len(example_ids), DIM), "f4"))


class Desk:
    """A run in process; away when it is told so."""

    def __init__(self) -> None:
        self.sampler, self.newest, self.away = make_sampler(N), (0, 0, b""), False

    def publish(self, version: int, step: int = 0) -> None:
        self.newest = version, step, f"weights {version}".encode()
        self.sampler.published(version, step)

    def weights(self, after: int):
        return self.newest if self.newest[0] > after else None

    def to_score(self, *args):
        if self.away:
            raise Unavailable("the run is away")
        return self.sampler.to_score(*args)

    def take_scores(self, report):
        if self.away:
            raise Unavailable("the run is away")
        self.sampler.take_scores(report)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def work(loop: ScorerLoop) -> float:
    """Until it wants to pause."""
    while not (pause_s := loop.turn()):
        pass
    return pause_s


def test_a_scorer_waits_for_weights_scores_all_and_waits_for_others(model, desk):
    loop = ScorerLoop("a", lambda: model, desk)
    work(loop)
    assert not model.loaded
    desk.publish(1, step=5)
    work(loop)
    said = desk.sampler.statistics()
    assert (model.loaded, said.scored_rows, said.weights_step) == ([b"weights 1"], N, 5)
    work(loop)
    assert desk.sampler.statistics().scored_rows == N
    desk.publish(2, step=6)
    work(loop)
    assert (model.loaded, desk.sampler.statistics().scored_rows) == ([b"weights 1", b"weights 2"], 2 * N)


def test_a_scorer_looks_for_new_weights_less_and_less_often_and_at_once_after_work(model, desk):
    loop = ScorerLoop("a", lambda: model, desk)
    pauses = [loop.turn() for _ in range(8)]
    assert pauses == [IDLE_PAUSE_S * 2**n for n in range(5)] + [MOST_IDLE_S] * 3
    desk.publish(1)
    assert work(loop) == IDLE_PAUSE_S


def test_weights_that_do_not_fit_are_tried_once_and_nothing_is_scored_by_what_is_left_of_the_old_ones(model, desk):
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    model.misfit = True
    for _ in range(5):
        work(loop)
    said = desk.sampler.statistics()
    assert (model.loaded, said.scored_rows) == ([b"weights 1"], 0)
    assert said.scorer_error == "weights 1 can't be loaded: ValueError: misfit"
    model.misfit = False
    desk.publish(2)
    work(loop)
    assert (desk.sampler.statistics().scored_rows, desk.sampler.statistics().scorer_error) == (N, "")


def test_failures_are_told_and_tried_again_after_longer_and_longer_pauses(model, desk):
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    model.fail = True
    pauses = [work(loop) for _ in range(4)]
    assert pauses == [BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S, 8 * BACKOFF_S]
    assert (
        "scoring 8 of 8 examples with weights 1 failed: ZeroDivisionError: broken"
        in desk.sampler.statistics().scorer_error
    )
    assert desk.sampler.statistics().rejected_rows == {"scoring_failed": 32}
    model.fail = False
    work(loop)
    assert (desk.sampler.statistics().scorer_error, desk.sampler.statistics().scored_rows) == ("", 8)


def test_rows_at_fault_are_found_in_their_batch_and_cost_the_others_nothing(model, desk):
    model.unreadable = {5, 21}
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    assert work(loop) == IDLE_PAUSE_S
    said = desk.sampler.statistics()
    assert (said.scored_rows, said.rejected_rows, said.scorer_error) == (N - 2, {"scoring_failed": 2}, "")
    assert set(np.flatnonzero(np.isnan(desk.sampler._table.norm_n))) == {5, 21}
    assert model.passes <= N // 8 + 2 * 2 * 3


def test_where_nothing_works_passes_are_not_split_for_ever(model, desk):
    model.batch_size, model.fail = N, True
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    assert work(loop) == BACKOFF_S
    assert MOST_FAILURES < model.passes <= MOST_FAILURES + 8
    assert desk.sampler.statistics().rejected_rows == {"scoring_failed": N}


def test_a_batch_of_nan_is_an_error_only_where_nothing_could_ever_be_used_or_it_goes_on(model, desk):
    model.nan = set(range(0, N, 2))
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    work(loop)
    sampler = desk.sampler
    assert sampler.statistics().scorer_error == ""
    assert sampler.statistics().rejected_rows == {"nan": N // 2}
    sampler._clock.advance(FAILED_S + IDLE_S)
    sampler._scores._version_n[list(model.nan)] = 0  # so that they, and they alone, are due
    assert work(loop) == BACKOFF_S
    assert sampler.statistics().scorer_error == ""
    model.nan = set(range(N))
    desk.publish(2)
    work(loop)
    assert "none of 8 norms by weights 2 can be used" in sampler.statistics().scorer_error


def test_records_that_can_no_more_be_read_are_an_error_when_it_goes_on(model, desk):
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    for _ in range(2):  # fetch, score
        loop.turn()
    assert desk.sampler.statistics().scored_rows == 8
    model.fail = True
    said = []
    for _ in range(FRUITLESS):
        work(loop)
        said.append(desk.sampler.statistics().scorer_error)
    assert said[:-1] == [""] * (FRUITLESS - 1) and "ZeroDivisionError: broken" in said[-1]


def test_a_run_that_fails_at_whatever_it_is_told_does_not_end_the_scorer(model, desk, monkeypatch):
    def broken(report):
        raise RuntimeError("no such method")

    monkeypatch.setattr(desk, "take_scores", broken)
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    assert [work(loop), work(loop)] == [BACKOFF_S, 2 * BACKOFF_S]
    monkeypatch.undo()
    desk.sampler._clock.advance(WORK_S)
    work(loop)
    assert desk.sampler.statistics().scored_rows == N


def test_a_factory_that_fails_is_told_and_tried_again(model, desk):
    tries = []

    def make():
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no disk")
        return model

    loop = ScorerLoop("a", make, desk)
    desk.publish(1)
    work(loop)
    assert desk.sampler.statistics().scorer_error == "the scoring factory failed: OSError: no disk"
    work(loop)
    work(loop)
    assert (desk.sampler.statistics().scorer_error, desk.sampler.statistics().scored_rows) == ("", N)


def test_a_run_that_is_away_is_asked_again(model, desk):
    loop = ScorerLoop("a", lambda: model, desk)
    desk.publish(1)
    desk.away = True
    assert [work(loop), work(loop)] == [BACKOFF_S, 2 * BACKOFF_S]
    desk.away = False
    work(loop)
    assert desk.sampler.statistics().scored_rows == N


def test_scorers_are_asked_for_no_deleted_example_and_for_none_that_came_later():
    sampler = published()
    first = ask(sampler, "a", 5)
    dataset = Dataset((N, N + 10)).without("data", np.array([*sorted(first)[:2], 30, N + 3]))
    sampler.follow(dataset)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    assert sampler.statistics().num_examples == N + 10
    late = scored(np.array(sorted(first)))
    sampler.take_scores(late)
    assert np.isnan(sampler._table.norm_n[sorted(first)]).tolist() == [True, True, False, False, False]
    assert sampler.statistics().rejected_rows == {"deleted": 2}
    seen = ask(sampler, "b", 2 * N)
    assert seen == set(range(N)) - first - {30}
    sampler.published(2, 5)
    assert ask(sampler, "b", 2 * N, version=2) == set(range(N)) - {*sorted(first)[:2], 30}
