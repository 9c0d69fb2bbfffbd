"""Publishing over the real wire: what scorers make of the weights, and what is said when they can't be used."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import grpc
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.publisher import PublishCounts
from sampler_client.pytorch.weights import Snapshot
from sampler_service.rpc.servicer import RunsServicer
from sampler_service.scoring.worker import ModelScorer, make_scorer
from sampler_service.service import InProcessService
from tests import scoring_factories as factories
from tests.raw_wire import QUICK, raw_channel
from tests.served import ServedService

N = factories.EXAMPLES


class Publishing:
    """A service with scorers of a factory, and loaders that are attached to it."""

    def __init__(self, factory: str, **settings) -> None:
        self.service = InProcessService(make_scorer=partial(make_scorer, f"tests.scoring_factories:{factory}"))
        self.served = ServedService(self.service, **settings)
        self._loaders: list[sampler.SampledLoader] = []

    def attach(self, **options) -> sampler.SampledLoader:
        plain = DataLoader(TensorDataset(torch.arange(N)), batch_size=16)
        settings = {"run": "run", "policy": "importance", "timeouts": QUICK} | options
        self._loaders.append(sampler.attach(plain, self.served.address, **settings))
        return self._loaders[-1]

    @property
    def table(self):
        return self.service._samplers["run"]._table

    @property
    def said(self):
        return self.service.statistics("run")

    def stop(self) -> None:
        for loader in self._loaders:
            loader.close()
        self.served.stop()


@pytest.fixture
def publishing() -> Iterator[Callable[..., Publishing]]:
    made: list[Publishing] = []

    def make(factory: str = "numbers", **settings) -> Publishing:
        made.append(Publishing(factory, **settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def exact(model: nn.Module, dim: int = 64) -> sampler.Scores:
    return sampler.LastLayerScorer(model, sketch_dim=dim)(factories.records().tensors)


# --- what becomes of weights ---


def test_published_weights_score_every_example_as_the_trainer_itself_would(publishing):
    service = publishing()
    loader, model = service.attach(), factories.model(1)
    loader.publish(model, step=7)
    loader.flush()
    scores = exact(model)
    np.testing.assert_allclose(service.table.norm_n, scores.norms, rtol=1e-5)
    assert np.isnan(service.table.loss_n).all(), "losses are the trainers' own"
    rows = service.service._samplers["run"]._shards.rows(np.arange(N))
    np.testing.assert_allclose(rows, scores.sketches, rtol=2e-3, atol=2e-3)  # kept as float16
    assert service.table.gradient_step_n.tolist() == [7] * N
    said = service.said
    assert (said.weights_version, said.weights_step, said.scored_rows, said.scorer_error) == (1, 7, N, "")
    assert (said.scorers, said.reported_rows, said.rejected_rows, said.sketch_coverage) == (1, 0, {}, 1.0)
    assert loader.publishes == PublishCounts(published=1, version=1, scorers=1)


def test_weights_are_those_of_the_moment_of_publishing(publishing, monkeypatch):
    service = publishing()
    loader, model = service.attach(), factories.model(1)
    before = exact(model).norms
    leave = threading.Event()
    publish = sampler.SamplerClient.publish
    monkeypatch.setattr(sampler.SamplerClient, "publish", lambda *args: leave.wait(10) and publish(*args))
    loader.publish(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    leave.set()
    loader.flush()
    np.testing.assert_allclose(service.table.norm_n, before, rtol=1e-5)


def test_the_newest_weights_win_while_others_are_being_sent_and_the_skipped_are_counted(publishing, monkeypatch):
    under_way, leave = threading.Event(), threading.Event()
    handler = RunsServicer.Publish

    def slow(self, requests, context):
        under_way.set()
        assert leave.wait(10)
        return handler(self, requests, context)

    monkeypatch.setattr(RunsServicer, "Publish", slow)
    service = publishing()
    loader = service.attach()
    loader.publish(factories.model(0), step=0)
    assert under_way.wait(5)
    for seed in (1, 2, 3):
        loader.publish(factories.model(seed), step=seed)  # returns although the first one is stuck
    leave.set()
    loader.flush()
    assert (loader.publishes.published, loader.publishes.skipped, loader.publishes.failed) == (2, 2, 0)
    assert (service.said.weights_version, service.said.weights_step) == (2, 3)
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(3)).norms, rtol=1e-5)


def test_wrappers_are_passed_by_and_tied_weights_arrive_under_both_names(publishing, monkeypatch):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
            self.out.weight = self.into.weight

        def forward(self, x):
            return self.out(torch.tanh(self.into(x)))

    scoring = factories.Scoring(model=Tied(), records=factories.records())
    monkeypatch.setattr(factories, "numbers", lambda _: scoring)
    service, model = publishing(), Tied()
    loader = service.attach()
    loader.publish(torch.compile(model, backend="eager"))
    loader.flush()
    np.testing.assert_allclose(service.table.norm_n, exact(model).norms, rtol=1e-5)
    assert scoring.model.into.weight is scoring.model.out.weight


def test_the_default_step_counts_the_optimiser_steps_behind_the_weights(publishing):
    service = publishing()
    loader = service.attach()
    loader.publish(factories.model())
    loader.flush()
    assert service.said.weights_step == 0
    for epoch in range(2):
        for step, (_, batch) in enumerate(loader):
            batch.report(np.ones(len(batch)))
            loader.publish(factories.model())
            loader.flush()
            assert service.said.weights_step == 4 * epoch + step + 1


def test_after_resuming_the_step_goes_on_from_the_restored_position(publishing):
    service = publishing()
    first = service.attach()
    batches = [batch for _, batch in zip(range(6), (batch for _ in range(2) for _, batch in first), strict=False)]
    assert [batch.run_step for batch in batches] == list(range(6))
    first.publish(factories.model())
    first.flush()
    state = first.state_dict()
    assert (state["epoch"], service.said.weights_step) == (1, 6)
    first.close()
    second = service.attach()
    second.load_state_dict(state)
    second.publish(factories.model())
    second.flush()
    assert service.said.weights_step == 6, "before the first batch"
    assert [batch.run_step for _, batch in second] == [6, 7]
    assert [batch.run_step for _, batch in second] == [8, 9, 10, 11]
    second.publish(factories.model())
    second.flush()
    assert service.said.weights_step == 12


def test_a_trainer_that_went_back_to_a_checkpoint_has_its_weights_scored(publishing):
    service = publishing()
    loader = service.attach()
    loader.publish(factories.model(1), step=100)
    loader.flush()
    loader.publish(factories.model(2), step=3)
    loader.flush()
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(2)).norms, rtol=1e-5)
    assert service.table.gradient_step_n.tolist() == [3] * N


def test_only_the_first_rank_sends_and_of_others_what_is_sketched_is_left_out(publishing):
    service = publishing()
    loaders = [service.attach(rank=rank, world_size=2) for rank in range(2)]
    for loader in loaders:
        loader.publish(factories.model())
        loader.flush()
    assert [loader.publishes.published for loader in loaders] == [1, 0]
    assert service.said.weights_version == 1
    _, batch = next(iter(loaders[1]))
    batch.report(np.ones(len(batch)), Sketches(len(batch)))
    loaders[1].flush()
    assert service.said.rejected_rows == {"other_unit": len(batch)}
    assert not (service.table.norm_n == 1e6).any()


# --- units and ages ---


class Sketches:
    """A sketcher whose norms are of a unit of their own."""

    def __init__(self, rows: int) -> None:
        self.sketches = np.full((rows, 64), 100, np.float16)
        self.norms = np.full(rows, 1e6, np.float32)
        self.usable = np.ones(rows, bool)

    def take(self, coefficients, /):
        return self


def test_after_publishing_a_sketcher_is_refused_and_losses_go_on(publishing):
    service = publishing()
    loader = service.attach()
    batches = iter(loader)
    _, batch = next(batches)
    batch.report(np.ones(len(batch)), Sketches(len(batch)))
    loader.flush()
    assert service.table.norm_n[batch.example_ids].tolist() == [1e6] * 16
    loader.publish(factories.model(1), step=1)
    loader.flush()
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(1)).norms, rtol=1e-5)
    _, batch = next(batches)
    with pytest.raises(sampler.ConfigError, match=r"another unit than a sketcher's; leave the sketcher out"):
        batch.report(np.ones(len(batch)), Sketches(len(batch)))
    batch.report(np.full(len(batch), 9.0))
    loader.flush()
    assert service.table.loss_n[batch.example_ids].tolist() == [9.0] * 16
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(1)).norms, rtol=1e-5)


def test_a_late_report_of_a_sketcher_keeps_its_losses_and_its_norms_are_left_out(publishing):
    service = publishing()
    loader, other = (service.attach(rank=rank, world_size=2) for rank in range(2))
    loader.publish(factories.model(1), step=0)
    loader.flush()
    _, batch = next(iter(other))  # a rank that does not know yet that another has published
    batch.report(np.full(len(batch), 9.0), Sketches(len(batch)))
    other.flush()
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(1)).norms, rtol=1e-5)
    assert service.table.loss_n[batch.example_ids].tolist() == [9.0] * len(batch)
    assert service.said.rejected_rows == {"other_unit": len(batch)}


def test_a_loss_of_a_later_step_stays_and_does_not_make_the_gradient_look_fresh(publishing):
    service = publishing()
    loader = service.attach()
    loader.publish(factories.model(1), step=0)
    for _, batch in loader:
        batch.report(np.full(len(batch), 9.0))
    loader.flush()
    loader.publish(factories.model(2), step=2)  # older than the reports of the last batch, which was step 3
    loader.flush()
    scores = exact(factories.model(2))
    np.testing.assert_allclose(service.table.norm_n, scores.norms, rtol=1e-5)
    assert (service.table.loss_n == 9.0).all(), "also those that are older than the weights"
    assert service.table.gradient_step_n.tolist() == [2] * N
    assert service.said.median_age_steps == service.table.step - 2


# --- what can't be used ---


FAILURES = [
    ("raising", "the scoring factory failed: FileNotFoundError: no records of run"),
    ("nonsense", "returned a str, expected a Scoring or None"),
    ("too_few", r"the records of tests.scoring_factories:too_few are 10, dataset 'run' has 64 examples"),
    ("missing", r"has no attribute 'missing'; it must be importable"),
    ("failing", "scoring 16 of 16 examples with weights 1 failed: ZeroDivisionError: in the user's code"),
    ("wrong_shape", r"the scorer returned norms of shape \(16, 2\), expected \(16,\)"),
    ("wrong_width", r"the scorer returned sketches of shape \(16, 5\), expected \(16, 64\)"),
    ("all_nan", "none of 16 norms by weights 1 can be used, that of example .* is nan"),
]


@pytest.mark.parametrize(("factory", "words"), FAILURES, ids=[factory for factory, _ in FAILURES])
def test_scoring_that_fails_is_told_once_and_training_goes_on(publishing, factory, words):
    service = publishing(factory)
    loader = service.attach()
    loader.publish(factories.model())
    with pytest.raises(sampler.ScoringError, match=words):
        loader.flush()
    assert np.isnan(service.table.norm_n).all()
    assert service.said.scored_rows == 0 and service.said.scorer_error
    loader.flush()  # said once
    assert sorted(i for _, batch in loader for i in batch.example_ids.tolist()) == list(range(N))


def test_a_dataset_that_is_not_scored_is_named(publishing):
    loader = publishing().attach(dataset="unscored")
    loader.publish(factories.model())
    with pytest.raises(sampler.ScoringError, match="returned None: dataset 'unscored' is not scored here"):
        loader.flush()


def test_rows_that_can_not_be_used_are_counted_and_the_others_are_taken(publishing):
    service = publishing("some_unusable")
    loader = service.attach()
    loader.publish(factories.model())
    loader.flush()  # raises nothing
    said = service.said
    assert (said.rejected_rows, said.scored_rows) == ({"nan": 4, "negative_norm": 4}, N - 8)
    assert np.isnan(service.table.norm_n).sum() == 8


def test_a_record_that_can_not_be_read_costs_no_other_its_score(publishing):
    service = publishing("one_missing")
    loader = service.attach()
    loader.publish(factories.model())
    loader.flush()  # one row is counted, and no error
    loader.publish(factories.model())  # what failed is left alone for a while
    loader.flush()
    assert np.flatnonzero(np.isnan(service.table.norm_n)).tolist() == [5]
    assert (service.said.rejected_rows, service.said.scorer_error) == ({"scoring_failed": 1}, "")


def test_a_scoring_pass_is_in_evaluation_mode_and_leaves_the_model_as_it_was_published(monkeypatch):
    modes = []

    def by_output(item):
        modes.append((torch.is_grad_enabled(), scoring.model.training))
        return scoring.model(item[0]).norm(dim=1)

    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    scoring = factories.Scoring(model=model, records=factories.records(), scorer=by_output)
    scorer = ModelScorer(scoring, 64)
    weights = Snapshot(model)
    scorer.load(weights.safetensors())
    first = scorer.score(np.arange(N))
    np.testing.assert_array_equal(scorer.score(np.arange(N)).norms, first.norms)
    assert modes == [(False, False)] * 2
    assert Snapshot(model).safetensors() == weights.safetensors()


def _other_model(change: str) -> nn.Module:
    layers = {"head": nn.Linear(8, 4), "less": nn.Tanh(), "more": nn.Linear(8, 3)}
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), layers[change])
    return model.append(nn.Linear(3, 3)) if change == "more" else model


MISFITS = [
    ("head", r"they have of another shape 2.bias \(4,\), the model's is \(3,\), 2.weight \(4, 8\), .* \(3, 8\)\."),
    ("less", r"they lack 2.bias, 2.weight\."),
    ("more", r"they have, unknown to the model, 3.bias, 3.weight\."),
]


@pytest.mark.parametrize(("change", "words"), MISFITS, ids=[change for change, _ in MISFITS])
def test_weights_that_do_not_fit_are_named_until_there_are_some_that_do(publishing, change, words):
    service = publishing()
    loader = service.attach()
    loader.publish(_other_model(change))
    with pytest.raises(sampler.ScoringError, match=f"weights 1 can't be loaded: .*{words}"):
        loader.flush()
    assert np.isnan(service.table.norm_n).all()
    loader.publish(factories.model(1))
    loader.flush()
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(1)).norms, rtol=1e-5)
    assert service.said.scorer_error == ""


def test_a_service_without_scorers_says_how_to_start_it_with_some(served):
    plain = DataLoader(TensorDataset(torch.arange(N)), batch_size=16)
    with sampler.attach(plain, served.address, run="run", timeouts=QUICK) as loader:
        loader.publish(factories.model())
        with pytest.raises(sampler.Stale, match=r"no scorers.*sampler-service up --scorers 1 --scoring package"):
            loader.flush()
        assert loader.publishes.failed == 1
        _, batch = next(iter(loader))
        batch.report(np.ones(len(batch)), Sketches(len(batch)))
        loader.flush()
        assert loader.reports.accepted == len(batch), "sketchers go on, since no scorer is there"


def test_the_same_failure_of_later_weights_is_raised_once(publishing):
    loader = publishing("failing").attach()
    for version in range(4):
        loader.publish(factories.model(version))
        with pytest.raises(sampler.ScoringError) if version == 0 else contextlib.nullcontext():
            loader.flush()
    assert loader.publishes.published == 4


def test_a_fence_waits_for_reports_and_says_nothing_of_scorers(publishing):
    loader = publishing("failing").attach()
    loader.publish(factories.model())
    deadline = time.monotonic() + 10
    while not loader.publishes.published and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader.fence() >= 0
    with pytest.raises(sampler.ScoringError):
        loader.flush()


def test_weights_are_let_go_when_they_are_sent_or_failed(publishing, served):
    plain = DataLoader(TensorDataset(torch.arange(N)), batch_size=16)
    good = publishing().attach()
    with sampler.attach(plain, served.address, run="run", timeouts=QUICK) as bad:  # a service without scorers
        for loader in (good, bad):
            weights = Snapshot(factories.model())
            kept = weakref.ref(weights)
            loader.sampler.source.publish(partial(list.pop, [weights]), 0)
            del weights
            deadline = time.monotonic() + 10
            while not (loader.publishes.published or loader.publishes.failed) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            assert kept() is None
        with pytest.raises(sampler.Stale):
            bad.flush()


def test_a_step_of_the_far_future_is_refused(publishing):
    loader = publishing().attach()
    loader.publish(factories.model(), step=1 << 40)
    with pytest.raises(sampler.ConfigError, match=f"weights of step {1 << 40}, the run is at step 4"):
        loader.flush()
    with pytest.raises(sampler.ConfigError, match="step must be at least 0, got -1"):
        loader.publish(factories.model(), step=-1)


def test_a_state_that_is_no_tensor_is_refused_on_the_caller_s_thread(publishing):
    class Stateful(nn.Linear):
        def get_extra_state(self):
            return {"scale": 1}

        def set_extra_state(self, state): ...

    with pytest.raises(sampler.ConfigError, match=r"state_dict\(\)\['_extra_state'\] is a dict"):
        publishing().attach().publish(Stateful(2, 2))


def test_a_sharded_model_is_refused_on_the_caller_s_thread():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = factories.model()

    with pytest.raises(sampler.ConfigError, match=r"this model is wrapped in FSDP.*gather the weights"):
        Snapshot(FullyShardedDataParallel())


def test_a_model_of_distributed_tensors_is_refused():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = distribute_module(factories.model(), init_device_mesh("cpu", (1,)))
        with pytest.raises(sampler.ConfigError, match=r"this model is sharded: 0.weight is a DTensor"):
            Snapshot(model)
    finally:
        distributed.destroy_process_group()


# --- the bare wire ---


def sent(address: str, *messages: pb.WeightsChunk) -> grpc.StatusCode | pb.PublishResponse:
    with raw_channel(address) as channel:
        try:
            return pb_grpc.RunsStub(channel).Publish(iter(messages), timeout=5)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            assert error.details()
            return error.code()


def head(session: str, num_bytes: int) -> pb.WeightsChunk:
    return pb.WeightsChunk(header=pb.WeightsHeader(session=session, num_bytes=num_bytes))


def chunk(size: int) -> pb.WeightsChunk:
    return pb.WeightsChunk(data=b"x" * size)


def test_what_is_no_whole_file_of_its_announced_size_is_refused_and_the_weights_before_stay(publishing):
    service = publishing(max_weights_bytes=5000)
    address = service.served.address
    with raw_channel(address) as channel:
        pb_grpc.DatasetsStub(channel).Register(pb.RegisterDatasetRequest(dataset="run", num_examples=N), timeout=5)
        opened = pb.OpenRunRequest(run="run", dataset="run", policy="importance")
        pb_grpc.RunsStub(channel).Open(opened, timeout=5)
        join = pb.JoinRequest(run="run", world_size=1, batch_size=4, lead=4)
        session = pb_grpc.RunsStub(channel).Join(join, timeout=5).session
    good = Snapshot(factories.model(1)).safetensors()
    answer = sent(address, *wire.encode_weights(session, 3, good))
    assert isinstance(answer, pb.PublishResponse)
    assert (answer.version, answer.scorers, answer.scorer_error) == (1, 1, "")
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert sent(address) is invalid
    assert sent(address, chunk(10)) is invalid
    assert sent(address, head(session, 0)) is invalid
    assert sent(address, head(session, 5001)) is invalid  # before a byte of it came
    assert sent(address, head(session, 100), chunk(60)) is invalid
    assert sent(address, head(session, 100), chunk(60), chunk(60)) is invalid
    assert sent(address, head(session, 100), head(session, 100)) is invalid
    assert sent(address, head("run:nobody", 100), chunk(100)) is grpc.StatusCode.NOT_FOUND
    assert sent(address, head("nobody", 100), chunk(100)) is invalid
    assert (service.said.weights_version, service.said.weights_step) == (1, 3)
    np.testing.assert_allclose(service.table.norm_n, exact(factories.model(1)).norms, rtol=1e-5)
    answer = sent(address, head(session, 100), chunk(100))
    assert isinstance(answer, pb.PublishResponse)
    assert "100 bytes are no safetensors file" in answer.scorer_error
    assert np.isfinite(service.table.norm_n).all()


def test_a_service_that_was_restarted_gets_the_next_weights(publishing):
    service = publishing()
    loader = service.attach()
    loader.publish(factories.model(1), step=1)
    loader.flush()
    service.served.stop()
    service.service = InProcessService(make_scorer=partial(make_scorer, "tests.scoring_factories:numbers"))
    service.served.start(service.service)
    loader.publish(factories.model(2), step=2)
    loader.flush()
    assert (service.said.weights_version, service.said.weights_step, service.said.scored_rows) == (1, 2, N)
