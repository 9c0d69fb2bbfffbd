"""Examples that stand out, and why one was drawn: sentences that agree with what was handed out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sampler_service import standouts
from sampler_service.errors import ConfigError, Unavailable
from sampler_service.sampler import Sampler
from sampler_service.standouts import LISTED_S, most_of_each
from tests.support import Clock, join_all, make_config, make_sampler, report_of
from tests.test_observer import N, clustered
from tests.test_sampler import train


def test_an_example_is_explained_by_its_rate_its_report_and_its_neighbours():
    sampler, trainer = clustered()
    found = sampler.explain(5, 3)
    times = sum(5 in batch.rows.example_ids for batch in trainer.received)
    assert found.example.drawn == times > 0
    assert found.example.loss == 0.5
    assert found.example.cluster == sampler._table.cluster_n[5]
    near = [neighbour.example.example_id for neighbour in found.neighbours]
    assert len(near) == 3
    assert {i % 4 for i in near} == {1}, "of its own group"
    assert 5 not in near
    assert all(neighbour.similarity > 0.99 for neighbour in found.neighbours)
    text = " ".join(found.why)
    assert "gradient_clustering" in text
    assert f"handed out {'once' if times == 1 else f'{times} times'}" in text
    assert "its loss was 0.5, higher than that of hardly any of the reported examples" in text


def test_why_an_example_was_never_drawn():
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1", "alpha": "0.1"})
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(1)
    drawn = set(trainer.received[0].rows.example_ids.tolist())
    never = next(i for i in range(N) if i not in drawn)
    text = " ".join(sampler.explain(never, 4).why)
    assert "No trainer has reported it yet" in text
    assert "It was never handed out so far" in text
    assert sampler.explain(never, 4).neighbours == []


def test_candidates_are_said_to_be_proposed_and_to_be_chosen_among_by_the_trainer():
    sampler = make_sampler(N, policy="two_stage", candidates=3)
    (trainer,) = join_all(sampler)
    train(trainer, 3)
    chosen = sampler._rates.chosen
    assert chosen is not None and chosen.candidates == 3
    text = " ".join(sampler.explain(int(trainer.received[0].rows.example_ids[0]), 1).why)
    assert "as one of 3 candidates for each example of a batch" in text
    assert "weighted for both draws" in text
    assert "in return" not in text


def test_a_sweep_of_the_highest_scores_says_how_often_an_example_is_among_them():
    sampler = make_sampler(N, policy="rho_loss", policy_options={"top_fraction": "0.25"})
    sampler.set_reference(np.zeros(N, np.float32))
    (trainer,) = join_all(sampler)
    train(trainer, 8)
    found = [sampler.explain(i, 1) for i in range(N)]
    assert np.mean([f.example.rate for f in found]) == pytest.approx(0.25, abs=0.05)
    easy, hard = (next(f for f in found if f.example.loss == loss) for loss in (0.5, 4.5))
    assert easy.example.rate < 0.05 < 0.8 < hard.example.rate
    text = " ".join(hard.why)
    assert "among the 25% of highest score where its turn comes; by its present score it is so in 90%" in text


def test_counts_that_began_anew_with_the_run_are_said_to_have():
    sampler, _ = clustered()
    again = Sampler(make_config(N, policy="gradient_clustering", num_clusters=4), sampler._shards, clock=Clock())
    again.recover()
    (trainer,) = join_all(again)
    trainer.start(3)
    trainer.take(1)
    drawn = int(trainer.received[0].rows.example_ids[0])
    never = next(i for i in range(N) if i not in trainer.received[0].rows.example_ids)
    assert "handed out once since the service took the run up again" in " ".join(again.explain(drawn, 1).why)
    assert "never handed out since the service took the run up again" in " ".join(again.explain(never, 1).why)
    assert "since" not in " ".join(sampler.explain(drawn, 1).why)


def test_without_an_answer_of_the_shards_an_example_is_explained_without_neighbours_and_with_the_reason():
    sampler, _ = clustered()
    known = sampler.explain(5, 3)
    assert (len(known.neighbours), known.no_neighbours) == (3, "")

    def away(*_):
        raise Unavailable("waited 6 s for sketch shard 1 of 2")

    limits = []
    shards = sampler._shards
    for stuck in (SimpleNamespace(rows=away), SimpleNamespace(rows=shards.rows, nearest=away)):
        sampler._watched.shards = stuck
        found = sampler.explain(5, 3)
        assert (found.example, found.why, found.neighbours) == (known.example, known.why, [])
        assert found.no_neighbours == "Its neighbours could not be looked for: waited 6 s for sketch shard 1 of 2."
    sampler._watched.shards = SimpleNamespace(
        rows=shards.rows, nearest=lambda *call: limits.append(call[-1]) or shards.nearest(*call)
    )
    assert len(sampler.explain(5, 3).neighbours) == 3
    assert limits == [standouts.NEIGHBOURS_S], "a person waits"


def test_an_example_without_a_sketch_or_without_company_says_that():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler, batch=1)
    trainer.start(0)
    (batch,) = trainer.take(1).batches
    assert sampler.explain(3, 4).no_neighbours.startswith("It has no sketch")
    sampler.report(trainer.session, [report_of(batch)])
    assert sampler.explain(int(batch.rows.example_ids[0]), 4).no_neighbours == "No other example has a sketch."
    assert sampler.explain(3, 0).no_neighbours == "None were asked for."


def test_before_the_first_batch_there_is_nothing_to_explain():
    assert make_sampler(N).explain(0, 4).why == ["No trainer has asked for a batch yet, so nothing was drawn."]


def test_a_sweep_that_leaves_examples_out_says_with_what_probability_it_keeps_one():
    sampler = make_sampler(N, policy="infobatch", epochs=10)
    (trainer,) = join_all(sampler)
    train(trainer, 3)
    kept = {found.example.rate: " ".join(found.why) for found in (sampler.explain(i, 1) for i in range(N))}
    assert set(kept) == {0.5, 1.0}
    assert "keeps it with probability 0.50, and then its loss has the weight 2.00" in kept[0.5]
    assert "Every epoch visits every example once" in kept[1.0]


@pytest.mark.parametrize(("example_id", "neighbours"), [(-1, 4), (N, 4), (0, 101), (0, -1)])
def test_what_can_not_be_explained_is_refused_by_value(example_id, neighbours):
    with pytest.raises(ConfigError, match=str(example_id if neighbours == 4 else neighbours)):
        make_sampler(N).explain(example_id, neighbours)


# --- examples that stand out ---


def test_examples_stand_out_in_their_order():
    sampler, trainer = clustered()
    hardest = sampler.examples("hardest", 6)
    assert [example.loss for example in hardest] == [4.5] * 6
    times = np.bincount(np.concatenate([batch.rows.example_ids for batch in trainer.received]), minlength=N)
    assert [example.drawn for example in sampler.examples("most_drawn", 4)] == sorted(times, reverse=True)[:4]
    never = sampler.examples("never_drawn", N)
    assert [example.example_id for example in never] == np.flatnonzero(times == 0).tolist()
    redundant = sampler.examples("redundant", 10)
    assert len({example.cluster for example in redundant}) == len(redundant) == 4, "one of each cluster"


def test_the_hardest_are_told_by_their_norms_where_no_losses_come():
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1"})
    (trainer,) = join_all(sampler)
    train(trainer, 1, losses=None)
    assert sampler.examples("hardest", 3)[0].norm == pytest.approx(np.nanmax(sampler._table.norm_n))


def test_of_many_the_largest_stand_out(monkeypatch):
    monkeypatch.setattr(standouts, "MOST_EXAMPLES", 5)
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    train(trainer, 1)
    sampler._table.loss_n[[3, 30, 17]] = [50.0, 70.0, 60.0]
    assert [example.example_id for example in sampler.examples("hardest", 3)] == [30, 17, 3]


def test_nothing_stands_out_before_anything_was_reported():
    sampler = make_sampler(N)
    assert sampler.examples("hardest", 5) == sampler.examples("most_drawn", 5) == sampler.examples("redundant", 5) == []
    assert [example.example_id for example in sampler.examples("never_drawn", 3)] == [0, 1, 2]


def test_a_list_serves_for_a_while_and_is_made_anew_for_new_clusters():
    clock = Clock()
    sampler = make_sampler(N, clock, policy="gradient_clustering", num_clusters=4)
    (trainer,) = join_all(sampler)
    assert len(sampler.examples("never_drawn", 1000)) == N
    trainer.start(0)
    trainer.take(2)
    assert len(sampler.examples("never_drawn", 1000)) == N
    assert sampler.examples("never_drawn", 3)[0].example_id == 0
    clock.advance(LISTED_S)
    assert len(sampler.examples("never_drawn", 1000)) == N - 8
    assert sampler.examples("redundant", 9) == []
    train(trainer, 2)
    assert len(sampler.examples("redundant", 9)) == 4, "there are clusters now"


def test_the_one_drawn_most_of_each_cluster_is_the_first_of_them():
    rng = np.random.default_rng(0)
    value_n, cluster_n = rng.integers(0, 4, 300).astype(np.uint32), rng.integers(-1, 7, 300).astype(np.int32)
    cluster_n[cluster_n == 5] = 4
    found = most_of_each(value_n, cluster_n, 7)
    for k in range(7):
        members = np.flatnonzero(cluster_n == k)
        assert found[k] == (members[np.argmax(value_n[members])] if len(members) else -1)


@pytest.mark.parametrize(("order", "count"), [("easiest", 5), ("hardest", 0), ("hardest", 1001)])
def test_what_can_not_be_listed_is_refused_by_value(order, count):
    with pytest.raises(ConfigError, match=str(count) if order == "hardest" else order):
        make_sampler(N).examples(order, count)
