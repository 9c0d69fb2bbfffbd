"""Two-stage selection over a real wire: candidates in, batches of the usual size out, and what can go wrong."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client import TwoStage
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.pytorch.two_stage.stage import SecondStage
from tests.client.conftest import BATCH, QUICK, STEPS, N
from tests.served import ServedService


def pairs(num_workers: int = 0, size: int = N, **options) -> DataLoader:
    """(id, label) of N examples: what comes out says which example it is."""
    dataset = TensorDataset(torch.arange(size, dtype=torch.float32).unsqueeze(1), torch.arange(size) % 3)
    spawn = {"multiprocessing_context": "spawn"} if num_workers else {}
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=num_workers, **spawn, **options)


def by_id(item) -> torch.Tensor:
    """Scores that differ from example to example and never change."""
    return 1 + item[0][:, 0] % 7


def attach(loader: DataLoader, served: ServedService, stage, **options) -> sampler.SampledLoader:
    return sampler.attach(loader, served.address, run="r", two_stage=stage, timeouts=QUICK, **options)


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate stays open, whatever this machine's clock says."""
    monkeypatch.setattr("sampler_service.stages.StageMonitor.decide", lambda self: self.most)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_have_their_usual_size_and_belong_to_their_data(served, monkeypatch, num_workers):
    always(monkeypatch)
    with attach(pairs(num_workers), served, TwoStage(by_id, candidates=3)) as loader:
        for _ in range(2):
            sizes = []
            for (ids, labels), batch in loader:
                np.testing.assert_array_equal(ids[:, 0].numpy(), batch.example_ids)
                np.testing.assert_array_equal(labels.numpy(), batch.example_ids % 3)
                assert len(batch.weights) == len(batch.probabilities) == len(batch.cluster_ids) == len(batch)
                np.testing.assert_allclose(batch.weights * batch.probabilities * N, 1, rtol=1e-5)
                assert batch.policy == "two_stage"
                sizes.append(len(batch))
            assert sizes == [BATCH] * STEPS, "an epoch has as many steps as without candidates"
        assert loader.second_stage is not None
        assert loader.second_stage.counts.scored == 2 * STEPS
        assert loader.second_stage.counts.candidates == 2 * STEPS * 3 * BATCH


def test_all_candidates_are_reported_and_large_scores_are_seen_more_often(served, monkeypatch):
    always(monkeypatch)
    seen = Counter[int]()
    with attach(pairs(), served, TwoStage(by_id, candidates=3, mix=0.1)) as loader:
        for _ in range(12):
            for _item, batch in loader:
                seen.update(batch.example_ids.tolist())
        loader.flush()
        accepted = loader.reports.accepted
        assert not loader.reports.rejected
        with sampler.SamplerClient(served.address) as client:
            said = client.statistics("r")
    known = served.service._samplers["r"]._table.norm_n
    np.testing.assert_allclose(known[np.isfinite(known)], (1 + np.arange(N) % 7)[np.isfinite(known)])
    # Of a candidate that was proposed twice in one batch one row counts.
    assert 0.9 * 12 * STEPS * 3 * BATCH < said.reported_rows == accepted
    small, large = (sum(seen[i] for i in range(N) if i % 7 == r) / len(range(r, N, 7)) for r in (0, 6))
    assert large > 2 * small


def test_losses_are_those_that_were_trained_with(served, monkeypatch):
    """With smoothed labels the scorer's plain loss is another; of candidates that were not kept none is known."""
    always(monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))
    trained: dict[int, float] = {}
    with attach(pairs(), served, model) as loader:
        for _ in range(3):
            (x, y), batch = next(iter(loader))
            losses = functional.cross_entropy(model(x / N), y, reduction="none", label_smoothing=0.3)
            batch.report(losses)
            trained |= dict(zip(batch.example_ids.tolist(), losses.tolist(), strict=True))
        loader.flush()
        assert not loader.reports.rejected
    table = served.service._samplers["r"]._table
    expected = [trained.get(i, np.nan) for i in range(N)]
    np.testing.assert_array_equal(table.loss_n, np.array(expected, np.float32))
    np.testing.assert_array_equal(table.step_n >= 0, np.isfinite(expected))
    assert np.isfinite(table.norm_n).sum() > len(trained)


def test_the_weighted_batches_estimate_the_mean_of_all_examples(served, monkeypatch):
    always(monkeypatch)
    value_n = np.cos(np.arange(N)) + 2
    estimates = []
    with attach(pairs(), served, TwoStage(by_id, candidates=2), seed=5) as loader:
        for _ in range(150):
            estimates += [float((batch.weights * value_n[batch.example_ids]).mean()) for _, batch in loader]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - value_n.mean()) < 4 * error
    assert error < 0.02


def test_a_model_is_scored_by_its_last_layer_and_trains(served, monkeypatch):
    always(monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sketcher = sampler.GradientSketcher(model, dim=8)
    with attach(pairs(), served, model, sketch_dim=8) as loader:
        for _ in range(2):
            for (x, y), batch in loader:
                losses = functional.cross_entropy(model(x / N), y, reduction="none")
                optimizer.zero_grad()
                batch.weighted_mean(losses).backward()
                optimizer.step()
                batch.report(losses, sketcher)
        loader.flush()
        counts = loader.reports
    assert counts.accepted > 0.9 * 2 * STEPS * (3 + 1) * BATCH, "candidates by their scores, batches by their sketches"
    assert not counts.rejected
    sketcher.close()


def test_ranks_choose_each_from_candidates_of_their_own(served, monkeypatch):
    always(monkeypatch)
    both = [attach(pairs(), served, TwoStage(by_id, candidates=2), rank=rank, world_size=2) for rank in range(2)]
    choices = []
    for left, right in zip(*both, strict=True):
        choices.append([batch.example_ids.tolist() for _, batch in (left, right)])
        assert left[1].global_batch_size == 2 * BATCH
    assert len(choices) == -(-N // (2 * BATCH))
    assert all(a != b for a, b in choices)
    for loader in both:
        loader.close()


def test_the_same_seed_gives_the_same_batches(served, monkeypatch):
    always(monkeypatch)
    runs = []
    options = {"two_stage": TwoStage(by_id), "timeouts": QUICK, "seed": 3}
    for run in ("first", "second"):
        # One batch at a time, and none is planned before the scores of the one before are there.
        with sampler.attach(pairs(), served.address, run=run, ahead=1, **options) as loader:
            taken = []
            for _item, batch in loader:
                loader.fence()
                taken.append((batch.example_ids.tolist(), batch.weights.tolist()))
            runs.append(taken)
    assert runs[0] == runs[1]


def test_where_scoring_does_not_pay_the_run_shuffles_says_so_and_looks_again(served, monkeypatch):
    monkeypatch.setattr("sampler_service.stages.PROBE_EVERY", 6)
    with attach(pairs(), served, TwoStage(lambda item: torch.ones(len(item[0])))) as loader:
        policies = Counter()
        for _ in range(6):
            for (ids, _labels), batch in loader:
                assert len(ids) == len(batch) == BATCH or batch.policy == "shuffle"
                policies[batch.policy] += 1
                loader.flush()
        with sampler.SamplerClient(served.address) as client:
            said = client.statistics("r")
        assert loader.second_stage is not None
        assert loader.second_stage.counts.unscored == policies["shuffle"] > policies["two_stage"] > 6
        assert "of the variance" in said.reason or said.active_policy == "two_stage"


@pytest.mark.parametrize("witness", ["losses", "gradient norms"])
def test_scores_that_have_nothing_to_do_with_the_gradients_are_found_out(served, monkeypatch, witness):
    monkeypatch.setattr("sampler_service.stages.StageMonitor.cost", lambda *_: 1.05)  # no clock
    torch.manual_seed(0)
    loss_n, lottery_n = torch.randn(N).exp(), torch.rand(N) ** 8
    sketcher = _NormsAlone(loss_n) if witness == "gradient norms" else None

    def last_policies(run: str, score_n: torch.Tensor) -> tuple[set[str], pb.GetStatisticsResponse]:
        stage = TwoStage(lambda item: score_n[item[0][:, 0].long()])
        with sampler.attach(
            pairs(), served.address, run=run, two_stage=stage, policy="two_stage", sketch_dim=1, timeouts=QUICK
        ) as loader:
            policies: list[str] = []
            for _ in range(14):
                for (ids, _labels), batch in loader:
                    policies.append(batch.policy)
                    if sketcher is not None:
                        sketcher.ids = batch.example_ids
                    batch.report(loss_n[ids[:, 0].long()], sketcher)
                loader.flush()
            with sampler.SamplerClient(served.address) as client:
                return set(policies[-STEPS:]), client.statistics(run)

    policies, said = last_policies("right", loss_n)
    assert policies == {"two_stage"}
    assert said.trained_ratio < 0.9
    policies, said = last_policies("lottery", lottery_n)
    assert policies == {"shuffle"}
    assert said.trained_ratio > 1.1
    assert f"by the {witness} of what was trained on" in said.reason and "measure something else" in said.reason


class _NormsAlone:
    """A sketcher whose gradients have the norms of a table."""

    def __init__(self, norm_n: torch.Tensor) -> None:
        self._norm_n, self.ids = norm_n.numpy(), np.empty(0, np.int64)

    def take(self, _coefficients=None):
        norms = self._norm_n[self.ids]
        return SimpleNamespace(sketches=norms[:, None], norms=norms, usable=np.ones(len(norms), bool))


def test_one_candidate_switches_it_off(served):
    with attach(pairs(), served, TwoStage(by_id, candidates=1)) as loader:
        seen = sorted(i for (ids, _), _ in loader for i in ids[:, 0].tolist())
    assert seen == list(range(N)), "plain shuffling"


def test_scores_that_are_no_numbers_are_counted_and_bias_nothing(served, monkeypatch):
    always(monkeypatch)

    def partly(item) -> torch.Tensor:
        scores = by_id(item)
        scores[item[0][:, 0] % 2 == 0] = torch.nan
        return scores

    value_n, estimates = np.cos(np.arange(N)) + 2, []
    with attach(pairs(), served, TwoStage(partly, candidates=2)) as loader:
        for _ in range(60):
            estimates += [float((batch.weights * value_n[batch.example_ids]).mean()) for _, batch in loader]
        loader.flush()
        assert loader.second_stage is not None
        assert loader.second_stage.counts.unusable > 0
        assert loader.reports.rejected["nan"] == loader.second_stage.counts.unusable
    assert abs(np.mean(estimates) - value_n.mean()) < 4 * np.std(estimates) / np.sqrt(len(estimates))


def test_without_a_single_score_the_first_stage_chooses_alone(served, monkeypatch):
    always(monkeypatch)
    blind = TwoStage(lambda item: torch.full((len(item[0]),), torch.inf))
    with attach(pairs(), served, blind) as loader:
        assert [len(batch) for _, batch in loader] == [BATCH] * STEPS
        assert loader.second_stage is not None
        assert loader.second_stage.counts.blind == STEPS


def test_a_scorer_that_fails_is_named_with_its_batch_and_its_error(served):
    def broken(item):
        raise RuntimeError("no such layer")

    with (
        attach(pairs(), served, TwoStage(broken)) as loader,
        pytest.raises(
            sampler.ScoringError, match=r"scoring the 24 candidates of batch \d+: RuntimeError: no such layer"
        ),
    ):
        next(iter(loader))


@pytest.mark.parametrize("wrong", [torch.ones(5), 1.0, torch.ones(24, 1)])
def test_scores_of_another_shape_are_named(served, wrong):
    with (
        attach(pairs(), served, TwoStage(lambda _item: wrong)) as loader,
        pytest.raises(sampler.ScoringError, match=r"norms of shape .*, expected \(24,\)"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("wrong", [torch.ones(24), torch.ones(5, 8), torch.ones(24, 2, 4)])
def test_sketches_of_another_shape_are_named(served, wrong):
    shape = re.escape(str(tuple(wrong.shape)))
    with (
        attach(pairs(), served, lambda _item: sampler.Scores(torch.ones(24), wrong), sketch_dim=8) as loader,
        pytest.raises(
            sampler.ScoringError,
            match=rf"24 candidates of batch \d+: .* sketches of shape {shape}, expected \(24, sketch_dim\)",
        ),
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TwoStage(by_id, candidates=0), "candidates must be at least 1, got 0"),
        (lambda: TwoStage(by_id, mix=0.0), r"mix must lie in \(0, 1\], got 0"),
        (lambda: TwoStage(by_id, order="sorted"), "order must be 'random' or 'similar', got 'sorted'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_settings_that_cannot_be_are_refused(make, says):
    with pytest.raises(sampler.ConfigError, match=says):
        make()


def test_more_candidates_than_examples_are_refused(served):
    with pytest.raises(
        sampler.ConfigError, match=r"7 candidates for each of 8 examples .* more than dataset 'r' has, 50"
    ):
        attach(pairs(), served, TwoStage(by_id, candidates=7))


def test_candidates_belong_to_the_settings_of_the_stage(served):
    with pytest.raises(sampler.ConfigError, match=r"two_stage=TwoStage\(model, candidates=…\)"):
        attach(pairs(), served, by_id, candidates=2)


def test_an_order_by_likeness_needs_sketches(served):
    with (
        attach(pairs(), served, TwoStage(by_id, order="similar")) as loader,
        pytest.raises(sampler.ConfigError, match="LastLayerScorer a sketch_dim"),
    ):
        next(iter(loader))


def test_an_order_by_likeness_works_with_them(served, monkeypatch):
    always(monkeypatch)
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))
    stage = TwoStage(sampler.LastLayerScorer(model, sketch_dim=16), order="similar")
    with attach(pairs(), served, stage, sketch_dim=16) as loader:
        assert [len(batch) for _, batch in loader] == [BATCH] * STEPS
        loader.flush()
        with sampler.SamplerClient(served.address) as client:
            assert client.statistics("r").sketch_coverage > 0.5


def test_a_run_that_ends_between_the_stages_is_an_error_and_no_hang(served, monkeypatch):
    always(monkeypatch)

    def closing(item) -> torch.Tensor:
        with sampler.SamplerClient(served.address) as client:
            client.close_run("r")
        return by_id(item)

    with (
        attach(pairs(), served, TwoStage(closing)) as loader,
        pytest.raises(sampler.SamplerError, match="closed"),
    ):
        for _ in range(3):
            for _item in loader:
                pass


def test_candidates_without_a_second_stage_are_refused(served):
    with pytest.raises(sampler.ConfigError, match="candidates is an option of TwoStage"):
        sampler.attach(pairs(), served.address, run="r", candidates=3)


def test_candidates_are_not_trained_on_as_they_are():
    batch = sampler.Batch(pb.Batch(example_ids=np.arange(6).tobytes(), weights=np.ones(6, "f4").tobytes(), keep=2))
    with pytest.raises(sampler.ConfigError, match="these are 6 candidates, of which 2 are to be kept"):
        batch.weighted_mean(torch.ones(6))


def test_the_clock_of_a_step_begins_with_the_batch_before_scored_or_not(monkeypatch):
    """10 ms of training, whether the batch before was scored or came as it was."""
    now = [0.0]
    monkeypatch.setattr("sampler_client.pytorch.two_stage.stage.time.perf_counter", lambda: now[0])
    reports: list = []
    stage = SecondStage(TwoStage(lambda item: torch.ones(len(item[0]))))

    def handle(keep: int) -> sampler.Batch:
        columns = {"weights": np.ones(6, "f4").tobytes(), "probabilities": np.ones(6, "f4").tobytes()}
        ids = np.arange(6).tobytes()
        message = pb.Batch(example_ids=ids, cluster_ids=np.zeros(6, "i4").tobytes(), keep=keep, **columns)
        return sampler.Batch(message, reports.append)

    for keep in (2, 0, 0, 0, 2):
        stage.select((torch.zeros(6, 1),), handle(keep), 0.0)
        now[0] += 0.01
    assert [report.stage.training for report in reports] == pytest.approx([0.0, 0.01])


def test_norms_of_a_sketcher_stay_out_of_a_run_with_a_scorer_also_where_nothing_was_scored(served, monkeypatch):
    monkeypatch.setattr("sampler_service.stages.StageMonitor.plan", lambda *_: 1)
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))
    sketcher = sampler.GradientSketcher(model, dim=8)
    with attach(pairs(), served, model, sketch_dim=8) as loader:
        for (x, y), batch in loader:
            losses = functional.cross_entropy(model(x), y, reduction="none")
            batch.weighted_mean(losses).backward()
            batch.report(losses, sketcher)
        loader.flush()
        assert np.isnan(served.service._samplers["r"]._table.norm_n).all()
    sketcher.close()


@pytest.mark.parametrize("policy", ["shuffle", "infobatch"])
def test_a_policy_that_proposes_no_candidates_is_refused(served, policy):
    with pytest.raises(
        sampler.ConfigError, match=f"policy '{policy}' goes through each epoch's examples .*two_stage=…"
    ):
        attach(pairs(), served, by_id, policy=policy)


@pytest.mark.parametrize("scored", [True, False])
def test_sketches_of_a_sketcher_and_of_a_scorer_do_not_mix(served, monkeypatch, scored):
    monkeypatch.setattr("sampler_service.stages.StageMonitor.plan", lambda self, _: self.most if scored else 1)
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))
    sketcher = sampler.GradientSketcher(model, dim=8)
    with attach(pairs(), served, sampler.LastLayerScorer(model, sketch_dim=8), sketch_dim=8) as loader:
        (x, y), batch = next(iter(loader))
        losses = functional.cross_entropy(model(x), y, reduction="none")
        batch.weighted_mean(losses).backward()
        with pytest.raises(sampler.ConfigError, match="sketches of this run are made by its scorer"):
            batch.report(losses, sketcher)
        batch.report(losses)
        loader.flush()
        assert loader.reports.dropped == 0
    sketcher.close()


def test_auto_begins_with_the_second_stage_and_leaves_it_when_labels_look_wrong(served, monkeypatch):
    always(monkeypatch)

    def epoch() -> set[str]:
        policies = set()
        for (ids, _), batch in loader:
            policies.add(batch.policy)
            batch.report(torch.where(ids[:, 0] % 3 == 0, 9.0, 0.1))
        loader.flush()
        return policies

    size = 2 * N  # half an epoch is enough to look for modes in
    with attach(pairs(size=size), served, lambda item: torch.ones(len(item[0]))) as loader:
        assert epoch() == {"two_stage"}
        assert loader.reason == "two_stage: there is a second stage, which measures itself whether it pays"
        for _ in range(2):
            assert epoch() == {"shuffle"}
            assert "% of the examples lie apart, as those of wrong labels do" in loader.reason
        assert loader.second_stage is not None
        assert loader.second_stage.counts.unscored == 2 * -(-size // BATCH)
        assert {batch.policy for _, batch in loader} == {"shuffle"}
        # Nothing was reported since: what was known then is no reason to go on.
        assert epoch() == {"two_stage"}
        assert epoch() == {"shuffle"}
        with sampler.SamplerClient(served.address) as client:
            said = client.statistics("r")
        assert (said.policy, said.active_policy) == ("auto", "shuffle")


def test_it_trains_in_mixed_precision(served, monkeypatch):
    """The loop wholly inside autocast, so that choosing is, too, and with scaled losses."""
    always(monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [value.detach().clone() for value in model.parameters()]
    stage = sampler.LastLayerScorer(model, sketch_dim=4)
    with attach(pairs(), served, stage, sketch_dim=4) as loader, torch.autocast("cpu", torch.bfloat16):
        for (x, y), batch in loader:
            losses = functional.cross_entropy(model(x / N), y, reduction="none")
            scaler.scale(batch.weighted_mean(losses)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            batch.report(losses)
        loader.flush()
        assert loader.second_stage is not None
        assert (loader.second_stage.counts.scored, loader.second_stage.counts.unusable) == (STEPS, 0)
        assert loader.reports.dropped == 0
    assert all(torch.isfinite(value).all() for value in model.parameters())
    assert any(not torch.equal(old, value) for old, value in zip(before, model.parameters(), strict=True))
    assert np.isfinite(served.service._samplers["r"]._table.norm_n).sum() > N / 2


def test_batches_that_were_not_scored_come_on_the_scorers_device_too():
    def scorer(item) -> torch.Tensor:
        raise AssertionError("there is nothing to choose from")

    scorer.device = torch.device("meta")
    columns = {"weights": np.ones(4, "f4").tobytes(), "probabilities": np.ones(4, "f4").tobytes()}
    message = pb.Batch(example_ids=np.arange(4).tobytes(), cluster_ids=np.zeros(4, "i4").tobytes(), **columns)
    (x,), batch = SecondStage(TwoStage(scorer)).select((torch.zeros(4, 1),), sampler.Batch(message), 0.0)
    assert (x.device.type, len(batch)) == ("meta", 4)
