"""What a run makes of its sketches beside clusters: targets, balanced orders and near pairs, and when it does."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_service.errors import ConfigError
from sampler_service.policies.freshness import freshness
from sampler_service.reports import policy_of
from sampler_service.types import NO_ROW, BestOfSome, ByPlace, NearTogether, Report, WeightedDraw
from tests.support import DIM, FakeTrainer, gradients, ids_of, join_all, make_config, make_sampler

N = 64


def run(policy: str, **changes) -> FakeTrainer:
    (trainer,) = join_all(make_sampler(N, policy=policy, **changes), batch=8)
    return trainer


def epoch(trainer: FakeTrainer, number: int, **changes) -> list:
    """One epoch, each batch reported as it comes, and what is due made."""
    trainer.start(number)
    received = []
    while batches := trainer.take_acked().batches:
        received += batches
        trainer.report(batches[0], **changes)
        if trainer.sampler.refresh_due():
            trainer.sampler.refresh()
    return received


def order_of(trainer: FakeTrainer):
    chosen = trainer.sampler._rates.chosen
    assert chosen is not None
    return chosen.rates.order


TARGET = gradients(np.arange(0, N, DIM))  # those of the first cluster


def test_a_target_puts_batches_that_point_to_it_first():
    trainer = run("poa")
    assert trainer.start(0).policy == "shuffle"
    epoch(trainer, 0)
    trainer.sampler.set_target(TARGET)
    started = trainer.start(1)
    assert started.policy == "poa"
    order = order_of(trainer)
    assert isinstance(order, BestOfSome)
    expected_n = gradients(np.arange(N)) @ TARGET.mean(0)
    np.testing.assert_allclose(order.score_n, expected_n, rtol=2e-3, atol=1.0)
    received = epoch(trainer, 1)
    assert sorted(ids_of(received)) == list(range(N))
    means = [order.score_n[batch.rows.example_ids].mean() for batch in received]
    assert means == sorted(means, reverse=True), "eight candidates are all that there are"
    assert all((batch.rows.weights == 1).all() for batch in received)


def test_examples_that_point_to_the_target_are_drawn_more_often_at_weight_1():
    trainer = run("validation_alignment", policy_options={"alpha": "0.25", "half_life": "1000"})
    epoch(trainer, 0)
    received = []
    for number in range(1, 9):
        trainer.sampler.set_target(TARGET)
        received += epoch(trainer, number)
    assert {batch.policy for batch in received} == {"validation_alignment"}
    assert all((batch.rows.weights == 1).all() for batch in received)
    # The four clusters are orthogonal: only the first gets the 75 % that are not even.
    share = np.mean([np.mean(batch.rows.example_ids % DIM == 0) for batch in received])
    assert share == pytest.approx(0.75 + 0.25 / DIM, abs=0.03)
    assert np.isnan(trainer.sampler.statistics().variance_ratio), "of draws that are biased nobody asks it"


def test_an_alignment_is_as_old_as_its_comparison_whatever_was_reported_since():
    trainer = run("validation_alignment", policy_options={"half_life": "1"})
    epoch(trainer, 0)
    trainer.sampler.set_target(TARGET)
    compared_at = trainer.sampler._table.step
    for number in (1, 2):
        epoch(trainer, number)
    view = trainer.sampler._table.view(trainer.steps_per_epoch)
    fresh_n = freshness(view, "alignment", half_life=1.0)
    assert view.step > compared_at and (view.gradient_step_n > compared_at).any()
    assert fresh_n.max() == pytest.approx(2 ** -((view.step - compared_at) / trainer.steps_per_epoch))


def test_a_target_that_is_never_set_anew_grows_too_old_to_draw_by():
    trainer = run("validation_alignment", fresh_epochs=2)
    epoch(trainer, 0)
    trainer.sampler.set_target(TARGET)
    policies = [{batch.policy for batch in epoch(trainer, number)} for number in range(1, 6)]
    assert policies[0] == {"validation_alignment"} and policies[-1] == {"shuffle"}


def test_held_out_examples_that_cancel_out_leave_even_draws():
    trainer = run("validation_alignment")
    epoch(trainer, 0)
    axes = np.eye(2, DIM, dtype=np.float32)
    for target, agreement in ((axes[:1], 1.0), (axes, 0.5), (axes[:1] * [[1], [-1]], 0.0), (0 * axes, 0.0)):
        trainer.sampler.set_target(np.asarray(target, np.float32))
        assert trainer.sampler._table.agreement == pytest.approx(agreement)


def test_examples_that_were_not_seen_of_late_are_judged_by_others_of_their_group():
    """All pointed to the target once; of the few that were seen of late, those of the even group point away."""
    trainer = run("validation_alignment", policy_options={"half_life": "1"})
    trainer.sampler.set_groups(100 + np.arange(N) % 2)
    axis = np.eye(1, DIM, dtype=np.float32)
    epoch(trainer, 0, sketches=axis.repeat(8, 0))
    ids = np.arange(8)
    late = Report(
        batch_id=0, step=80, example_ids=ids, losses=None, norms=None, sketches=axis * np.where(ids % 2, 1, -1)[:, None]
    )
    trainer.sampler.report(trainer.session, [late])
    trainer.sampler.set_target(axis)
    received = epoch(trainer, 1, sketches=axis.repeat(8, 0))[:2]
    assert {batch.policy for batch in received} == {"validation_alignment"}
    assert np.mean([np.mean(batch.rows.example_ids % 2) for batch in received]) > 0.8


def test_a_new_target_serves_the_next_batch():
    trainer = run("validation_alignment")
    epoch(trainer, 0)
    for cluster in (1, 3):
        trainer.sampler.set_target(gradients(np.arange(cluster, N, DIM)))
        trainer.start(1 + cluster)
        taken = [trainer.take_acked().batches[0] for _ in range(4)]
        assert np.mean([np.mean(batch.rows.example_ids % DIM == cluster) for batch in taken]) > 0.6


@pytest.mark.parametrize(
    ("sketches", "words"),
    [
        (np.zeros((3, DIM + 1), np.float32), rf"\(m, {DIM}\) for run 'run'; got shape \(3, {DIM + 1}\)"),
        (np.zeros((0, DIM), np.float32), rf"got shape \(0, {DIM}\)"),
        (np.zeros(DIM, np.float32), rf"got shape \({DIM},\)"),
        (np.where(np.arange(2 * DIM).reshape(2, DIM) > DIM, np.nan, 0), "held-out example 1 is not finite"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_and_changes_nothing(sketches, words):
    trainer = run("poa")
    epoch(trainer, 0)
    trainer.sampler.set_target(TARGET)
    before = trainer.sampler._table.version
    with pytest.raises(ConfigError, match=words):
        trainer.sampler.set_target(sketches.astype(np.float32))
    assert trainer.sampler._table.version == before
    assert trainer.start(1).policy == "poa"


def test_an_order_is_balanced_late_in_each_epoch_for_the_next():
    trainer = run("balanced_order")
    assert "no order was balanced yet" in trainer.start(0).reason
    epoch(trainer, 0)
    places = []
    for number in (1, 2, 3):
        assert trainer.start(number).policy == "balanced_order"
        order = order_of(trainer)
        assert isinstance(order, ByPlace)
        places.append(order.place_n)
        received = epoch(trainer, number)
        assert ids_of(received) == np.argsort(order.place_n, kind="stable").tolist()
    assert not np.array_equal(places[0], places[1])
    assert trainer.sampler.statistics().refreshes == 4, "once an epoch"


def test_an_order_whose_epoch_ended_between_two_looks_is_made_in_the_next():
    trainer = run("balanced_order")
    sampler = trainer.sampler

    def step() -> None:
        trainer.report(trainer.take_acked().batches[0])

    trainer.start(0)
    for _ in range(7):
        step()
        assert sampler.refresh_due() is None, "seven of eight steps are no epoch yet"
    step()  # nobody looks
    trainer.start(1)
    step()
    assert sampler.refresh_due() == "epoch"
    sampler.refresh()
    for _ in range(6):
        step()
        assert sampler.refresh_due() is None, "once an epoch"
    step()
    assert sampler.refresh_due() == "epoch", "its own is due as ever"
    assert trainer.start(2).policy == "balanced_order"


def pairs(ids: np.ndarray) -> np.ndarray:
    """Embeddings of pairs, left and right: those of ids that are equal modulo 8 are near to one another."""
    angle = np.pi * (ids % 8) / 8 + 1e-3 * ids
    half = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return np.concatenate((half, half), axis=1).astype(np.float32)


def mined(trainer: FakeTrainer, epochs: int) -> list:
    received = []
    for number in range(epochs):
        trainer.start(number)
        while batches := trainer.take_acked().batches:
            received += batches
            trainer.report(batches[0], sketches=pairs(batches[0].rows.example_ids), norms=None)
            if trainer.sampler.refresh_due():
                trainer.sampler.refresh()
    return received


def alike(batches: list) -> float:
    """Mean over anchors of how many others of their batch are equal to them modulo 8; 7 / 9 by chance."""
    return float(
        np.mean([np.mean([np.sum(b.rows.example_ids % 8 == i % 8) - 1 for i in b.rows.example_ids]) for b in batches])
    )


HARD = {"first": "1", "last": "7", "together": "7", "begin": "0", "end": "0"}


def test_pairs_that_are_near_come_together_once_an_epoch_each():
    trainer = run("hard_negative", policy_options=HARD)
    received = mined(trainer, 4)
    for number in range(4):
        assert sorted(ids_of(b for b in received if b.epoch == number)) == list(range(N))
    assert isinstance(order_of(trainer), NearTogether)
    assert alike([b for b in received if b.epoch == 0]) < 2
    assert alike([b for b in received if b.epoch > 0]) > 4


def test_pairs_that_match_are_kept_apart():
    trainer = run("hard_negative", policy_options=HARD)
    trainer.sampler.set_groups(np.arange(N) % 8)
    mined(trainer, 2)
    order = order_of(trainer)
    assert isinstance(order, NearTogether)
    near_am = order.nearby.near_am
    assert (near_am != NO_ROW).all()
    assert (near_am % 8 != order.nearby.anchor_a[:, None] % 8).all()
    with pytest.raises(ConfigError, match="groups: got 3, run 'run' has 64 examples"):
        trainer.sampler.set_groups(np.arange(3))


def test_hardness_rises_with_the_run():
    trainer = run("hard_negative", epochs=10, policy_options={**HARD, "begin": "0.2", "end": "0.6"})
    received = mined(trainer, 10)
    by_epoch = [alike([b for b in received if b.epoch == number]) for number in range(10)]
    assert max(by_epoch[:3]) < 2 and np.mean(by_epoch[6:]) > 4
    assert np.mean(by_epoch[3:6]) == pytest.approx(3, abs=1.5)


@pytest.mark.parametrize(
    ("policy", "changes", "words"),
    [
        ("poa", {}, r"policy 'poa' needs a target of held-out examples: loader.set_target\(sketches\)"),
        ("validation_alignment", {}, r"'validation_alignment' needs a target"),
        ("balanced_order", {"sketches": None}, r"'balanced_order' needs sketches: batch.report\(losses, sketcher\)"),
        ("hard_negative", {"sketches": None}, r"'hard_negative' needs the embeddings of its pairs"),
        ("poa", {"sketches": None}, r"'poa' needs sketches: batch.report\(losses, sketcher\)"),
    ],
)
def test_a_policy_that_never_gets_what_it_needs_refuses_the_third_epoch(policy, changes, words):
    options = {"policy_options": HARD} if policy == "hard_negative" else {}
    trainer = run(policy, **options)
    for number in (0, 1):
        epoch(trainer, number, **changes)
    with pytest.raises(ConfigError, match=words + r".*; got none in 2 epochs"):
        trainer.start(2)


@pytest.mark.parametrize(
    ("policy", "changes", "words"),
    [
        ("poa", {}, r"'poa' needs a target of held-out examples"),
        ("hard_negative", {"sketches": None}, r"'hard_negative' needs the embeddings of its pairs"),
    ],
)
def test_a_run_of_two_epochs_is_refused_its_last(policy, changes, words):
    trainer = run(policy, epochs=2, **({"policy_options": HARD} if policy == "hard_negative" else {}))
    epoch(trainer, 0, **changes)
    with pytest.raises(ConfigError, match=words + r".*; got none in 1 epoch, and epoch 1 is the last that it is for"):
        trainer.start(1)


def test_a_run_of_one_epoch_and_one_of_which_nothing_was_reported_yet_are_not_refused():
    epoch(run("poa", epochs=1), 0)
    trainer = run("poa", epochs=2)
    trainer.start(0)
    trainer.drain()
    assert "sketches that were compared with held-out ones" in trainer.start(1).reason


def two_ranks() -> list[FakeTrainer]:
    """Of a run of two epochs, at the end of the first one."""
    trainers = join_all(make_sampler(N, policy="poa", epochs=2), world=2, batch=8)
    for trainer in trainers:
        trainer.start(0)
    for trainer in trainers:
        while batches := trainer.take_acked().batches:
            trainer.report(batches[0])
    return trainers


def test_a_policy_that_draws_may_be_given_its_target_within_the_last_epoch():
    trainer = run("validation_alignment", epochs=2)
    epoch(trainer, 0)
    assert trainer.start(1).policy == "shuffle"
    trainer.sampler.set_target(TARGET)


def test_of_two_ranks_the_last_one_to_begin_the_last_epoch_is_refused():
    one, other = two_ranks()
    assert one.start(1).policy == "shuffle", "the other one may be about to give the target"
    with pytest.raises(ConfigError, match=r"'poa' needs a target .*; got none in 1 epoch, and epoch 1 is the last"):
        other.start(1)
    other.sampler.set_target(TARGET)
    other.start(1)


def test_a_rank_that_gives_the_target_after_the_other_went_on_is_in_time():
    one, other = two_ranks()
    one.start(1)
    other.sampler.set_target(TARGET)
    other.start(1)


def test_a_target_without_sketches_to_compare_it_with_is_not_enough():
    trainer = run("validation_alignment")
    trainer.sampler.set_target(TARGET)
    for number in (0, 1):
        epoch(trainer, number, sketches=None)
    with pytest.raises(ConfigError, match=r"'validation_alignment' needs sketches: .*; got none in 2 epochs"):
        trainer.start(2)


def test_sketches_of_gradients_are_no_embeddings_of_pairs():
    trainer = run("hard_negative", policy_options=HARD)
    trainer.start(0)
    (batch,) = trainer.take(1).batches
    with pytest.raises(ConfigError, match=r"needs the embeddings of pairs, and got sketches of gradients"):
        trainer.report(batch, norms=np.ones(len(batch.rows.example_ids), np.float32))


def test_groups_of_pairs_that_leave_no_negatives_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sampler_service.reports.MOST_EQUIVALENT", 3)
    with pytest.raises(ConfigError, match=r"the largest has 4 pairs; .* match one another, and 3 may at most"):
        run("hard_negative", policy_options=HARD).sampler.set_groups(np.arange(N) // 4)
    run("hard_negative", policy_options=HARD).sampler.set_groups(np.arange(N) // 3)
    run("validation_alignment").sampler.set_groups(np.arange(N) // 4)  # labels


def test_a_phase_whose_policy_never_gets_what_it_needs_refuses_its_third_epoch():
    trainer = run("phases", policy_options={"schedule": "0.3 shuffle; 1 poa"}, epochs=10)
    for number in range(5):
        epoch(trainer, number)
    with pytest.raises(ConfigError, match=r"policy 'poa' needs a target .*; got none in 2 epochs"):
        trainer.start(5)
    trainer.sampler.set_target(TARGET)
    assert trainer.start(5).policy == "poa"


def test_a_phase_of_two_epochs_is_refused_its_last_and_does_not_hold_the_next_one_up():
    trainer = run("phases", policy_options={"schedule": "0.3 shuffle; 0.5 poa; 1 shuffle"}, epochs=10)
    for number in range(4):
        epoch(trainer, number)
    with pytest.raises(ConfigError, match=r"policy 'poa' needs a target .*, and epoch 4 is the last that it is for"):
        trainer.start(4)
    trainer = run("phases", policy_options={"schedule": "0.3 shuffle; 0.4 poa; 1 shuffle"}, epochs=10)
    for number in range(6):
        epoch(trainer, number)


def test_a_run_that_does_not_fit_its_policy_is_refused():
    with pytest.raises(ConfigError, match="goes by the share of the run that is done; say how long: epochs="):
        make_sampler(N, policy="phases")
    with pytest.raises(ConfigError, match="goes by the share of the run that is done"):
        make_sampler(N, policy="hard_negative")
    for length in ({}, {"epochs": 4}):
        with pytest.raises(ConfigError, match=r"'time_budget' goes by a clock, which run 'run' has not: give budget="):
            policy_of(make_config(N, policy="time_budget", **length))
    assert policy_of(make_config(N, policy="time_budget", by_budget=True)).name == "time_budget"
    with pytest.raises(ConfigError, match="side by side, sketch_dim is 5"):
        make_sampler(N, policy="hard_negative", epochs=2, sketch_dim=5)
    with pytest.raises(ConfigError, match=f"of rank {N} or beyond, and run 'run' has {N} pairs: lower .*'first'"):
        make_sampler(N, policy="hard_negative", epochs=2, policy_options={"first": str(N)})
    with pytest.raises(ConfigError, match="side by side, sketch_dim is 5"):
        options = {"schedule": "0.5 shuffle; 1 hard_negative"}
        make_sampler(N, policy="phases", policy_options=options, epochs=2, sketch_dim=5)


def test_a_phase_can_not_end_at_nan():
    options = {"schedule": "0.5 shuffle; nan infobatch; 1 shuffle"}
    with pytest.raises(ConfigError, match=r"must end at rising shares of the run, .* end at \[0.5, nan, 1.0\]"):
        make_sampler(N, policy="phases", policy_options=options, epochs=2)


def test_each_phase_has_its_policy_and_no_cluster_is_left_out_early():
    schedule = "0.2 shuffle; 0.6 gradient_clustering; 0.8 selective_backprop; 1 shuffle"
    trainer = run("phases", policy_options={"schedule": schedule}, epochs=10, num_clusters=4)
    received = [batch for number in range(10) for batch in epoch(trainer, number)]
    policies = [{b.policy for b in received if b.epoch == number} for number in range(10)]
    assert policies[:2] == [{"shuffle"}] * 2
    assert all("gradient_clustering" in names for names in policies[3:6])
    assert policies[6:] == [{"selective_backprop"}] * 2 + [{"shuffle"}] * 2
    for number in range(5):
        clusters = {int(i) % DIM for b in received if b.epoch == number for i in b.rows.example_ids}
        assert clusters == set(range(DIM))
    assert "the phase up to 100% of the run" in trainer.sampler.statistics().reason


def test_protected_phases_draw_what_has_next_to_no_gradient_and_later_ones_hardly_do():
    schedule = "0.9 importance gate=1 alpha=0.01 half_life=1e9; 1 shuffle"

    def least(protect: float) -> float:
        options = {"schedule": schedule, "protect": str(protect)}
        trainer = run("phases", policy_options=options, epochs=10)
        trainer.start(0)
        while batches := trainer.take_acked().batches:
            norms = np.where(batches[0].rows.example_ids == 0, 1e3, 1e-3).astype(np.float32)
            trainer.report(batches[0], norms=norms, sketches=None)
        trainer.start(1)
        rates = trainer.sampler._rates.chosen.rates
        assert isinstance(rates, WeightedDraw)
        return N * float(rates.probability_n.min())

    assert least(protect=0.5) == pytest.approx(0.1 + 0.9 * least(protect=0.0), rel=1e-4)
    assert least(protect=0.0) < 0.05
