"""LocalService: all of a service in this process, with nothing beside it."""

from __future__ import annotations

import json
import pickle
import threading
import time

import grpc
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client import Phase, RemoteBatchSampler, TimeBudget, TwoStage
from sampler_client.mixing import CascadingSum
from sampler_client.reporter import ReportRows
from sampler_service.local import LocalService
from tests import scoring_factories as factories
from tests.client.conftest import QUICK
from tests.local.data import BATCH, DIM, STEPS, N, make_loader, make_model

EVERYTHING = list(range(N))


@pytest.fixture
def service():
    with LocalService(timeouts=QUICK) as service:
        yield service


def ids_of(loader, steps: int | None = None) -> list[int]:
    """Ids of an epoch, or of its first steps; then the loader is left where it is."""
    ids = []
    for count, (_, batch) in enumerate(loader, start=1):
        ids += batch.example_ids.tolist()
        if count == steps:
            break
    return ids


def train(loader, epochs: int = 1) -> None:
    model = make_model()
    sketcher = sampler.GradientSketcher(model, dim=DIM)
    for _ in range(epochs):
        for (_, x, labels), batch in loader:
            losses = F.cross_entropy(model(x), labels, reduction="none")
            batch.weighted_mean(losses).backward()
            batch.report(losses, sketcher)
    sketcher.close()


# --- what works ---


def test_a_run_is_trained_seen_and_explained(service):
    loader = service.attach(make_loader(), run="try", policy="gradient_clustering", sketch_dim=DIM)
    train(loader, epochs=3)
    said = service.statistics("try", detail=True)
    assert (said.active_policy, said.num_examples, said.trainers) == ("gradient_clustering", N, 1)
    assert said.reported_rows == loader.reports.accepted
    assert said.refreshes >= 1 and len(said.detail.clusters) == said.num_clusters == BATCH
    explained = service.explain("try", 7, neighbours=3)
    assert explained.example.example_id == 7 and explained.why and len(explained.neighbours) == 3
    assert len(service.examples("try", "hardest", count=5)) == 5
    assert service.runs() == ["try"]


@pytest.mark.parametrize("tuples", ["same", "different"])
def test_tuples_of_mixed_examples_are_of_the_clusters_that_the_service_made(service, tuples):
    options = {"policy": "gradient_clustering", "sketch_dim": DIM, "num_clusters": 4}
    loader = service.attach(make_loader(drop_last=True), run="mixed", **options)
    train(loader, epochs=2)
    mixer = CascadingSum(2, 4, tuples=tuples)
    for (_, x, _), batch in loader:
        count_k = np.bincount(batch.cluster_ids, minlength=4)
        of_cluster = torch.tensor(batch.cluster_ids).long()
        mixed = mixer(x, of_cluster, 0.0, weights=batch.weights, kinds=batch.cluster_ids)
        alike = int(((mixed.targets > 0).sum(1) == 1).sum())
        assert batch.policy == "gradient_clustering"
        assert alike == ((count_k // 2).sum() if tuples == "same" else max(0, count_k.max() - BATCH // 2))


def test_there_is_no_server_no_connection_and_no_thread(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("there is no wire here")

    monkeypatch.setattr(grpc, "server", refuse)
    monkeypatch.setattr(grpc, "insecure_channel", refuse)
    monkeypatch.setattr("socket.socket", refuse)
    before = set(threading.enumerate())
    with LocalService() as service:
        loader = service.attach(make_loader(), run="try", policy="importance", sketch_dim=DIM)
        train(loader, epochs=2)
        loader.flush()
        assert set(threading.enumerate()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_every_example_comes_once_an_epoch(service, workers):
    loader = service.attach(make_loader(num_workers=workers), run="r", policy="shuffle")
    assert len(loader) == STEPS
    epochs = [ids_of(loader) for _ in range(2)]
    assert [sorted(ids) for ids in epochs] == [EVERYTHING] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("steps", [0, 3, STEPS])
def test_a_position_is_saved_and_restored(service, steps):
    first = service.attach(make_loader(), run="r", policy="shuffle")
    before = ids_of(first, steps) if steps else []
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    with LocalService() as another:  # in another process it would be another one
        second = another.attach(make_loader(), run="r", policy="shuffle")
        second.load_state_dict(state)
        rest = ids_of(second)  # behind the last batch of an epoch begins the next one
        assert sorted(rest if steps == STEPS else before + rest) == EVERYTHING


def test_a_report_is_in_the_table_when_it_was_made(service):
    loader = service.attach(make_loader(), run="r", policy="shuffle")
    for _, batch in loader:
        losses = np.ones(len(batch), np.float32)
        losses[0] = np.nan if batch.step == 0 else 1
        batch.report(losses)
        assert service.statistics("r").reported_rows == loader.reports.accepted == batch.step * BATCH + len(batch) - 1
        assert loader.reports.rejected == {"nan": 1}
    assert loader.reports.waiting == loader.reports.dropped == 0


def test_the_same_calls_give_the_same_batches():
    epochs = []
    for _ in range(2):
        with LocalService() as service:
            loader = service.attach(make_loader(), run="r", policy="gradient_clustering", sketch_dim=DIM)
            train(loader, epochs=2)
            epochs.append(ids_of(loader))
    assert epochs[0] == epochs[1]


def test_phases_follow_one_another(service):
    phases = [Phase(0.5, "shuffle"), Phase(1, "importance", {"gate": 1})]
    loader = service.attach(make_loader(), run="r", phases=phases, epochs=2, sketch_dim=DIM)
    policies = []
    for _ in range(2):
        train(loader)
        policies.append(dict(service.statistics("r").batches_by_policy))
    assert policies == [{"shuffle": STEPS}, {"shuffle": STEPS, "importance": STEPS}]


def test_a_budget_says_how_far_the_run_is(service):
    now = [0.0]
    budget = TimeBudget(100.0, clock=lambda: now[0])
    loader = service.attach(make_loader(), run="r", policy="time_budget", budget=budget)
    serving = {}
    for _, batch in budget.over(loader):
        serving[batch.epoch] = service.statistics("r").active_policy
        now[0] += 11
    assert serving == {0: "infobatch", 1: "shuffle"}, "the last eighth, in which the second epoch begins, is shuffled"


def test_two_stages_keep_the_size_of_batches(service):
    loader = service.attach(make_loader(), run="r", two_stage=TwoStage(lambda item: 1.0 + item[0] % 7, candidates=3))
    for _ in range(2):
        assert [len(batch) for _, batch in loader][:-1] == [BATCH] * (STEPS - 1)
    assert service.statistics("r").candidates >= 1


def test_a_target_is_known_to_the_next_epoch(service):
    loader = service.attach(make_loader(), run="r", policy="poa", sketch_dim=DIM)
    train(loader)
    assert "poa needs 50 %" in loader.reason
    version = loader.set_target(np.ones((2, DIM), np.float32))
    assert version == service.fence("r")
    assert sorted(ids_of(loader)) == EVERYTHING
    assert loader.reason == ""


def test_figures_are_written(service):
    class Kept:
        def __init__(self) -> None:
            self.written: list[dict[str, float]] = []

        def write(self, figures, step) -> None:
            self.written.append(dict(figures))

        def close(self) -> None: ...

    loader, kept = service.attach(make_loader(), run="r", policy="shuffle"), Kept()
    with sampler.FigureLogger(loader, kept, every_s=0.01) as logger:
        for _ in loader:
            logger.step()
    assert kept.written[-1]["sampler/epoch_coverage"] == 1


def test_a_batch_sampler_takes_it_for_an_address(service):
    batches = RemoteBatchSampler.connect(service, run="r", num_examples=N, batch_size=BATCH, policy="shuffle")
    ids = []
    for batch_ids in batches:
        assert batches.received().example_ids.tolist() == batch_ids
        ids += batch_ids
    assert sorted(ids) == EVERYTHING


# --- scorers ---


def test_weights_are_refused_without_scorers(service):
    loader = service.attach(make_loader(), run="r", policy="importance")
    with pytest.raises(sampler.Stale, match=r"publish weights: this service has no scorers.*leave publish\(\) out"):
        loader.publish(make_model())
    assert (loader.publishes.published, loader.publishes.failed) == (0, 1)
    assert sorted(ids_of(loader)) == EVERYTHING


def test_all_examples_are_scored_by_weights_that_were_published():
    records = torch.utils.data.DataLoader(factories.records(), batch_size=16)
    with LocalService(scoring="tests.scoring_factories:numbers") as service:
        loader = service.attach(records, run="r", policy="importance")
        loader.publish(factories.model())
        assert service.statistics("r").scored_rows == factories.EXAMPLES
        assert loader.publishes.published == loader.publishes.version == 1
        for _, batch in loader:
            with pytest.raises(sampler.ConfigError, match="leave the sketcher out"):
                batch.report(np.ones(len(batch), np.float32), Ones())
            batch.report(np.ones(len(batch), np.float32))


class Ones:
    """A sketcher that knows one gradient."""

    sketches, norms, usable = np.ones((16, 64), np.float32), np.ones(16, np.float32), np.ones(16, bool)

    def take(self, _coefficients):
        return self


def test_scorers_that_cannot_use_the_weights_are_heard_at_once():
    records = torch.utils.data.DataLoader(factories.records(), batch_size=16)
    with LocalService(scoring="tests.scoring_factories:numbers") as service:
        loader = service.attach(records, run="r", policy="importance")
        with pytest.raises(sampler.ScoringError, match="don't fit the scoring model"):
            loader.publish(make_model())


# --- several loaders ---


def test_a_rank_that_is_attached_again_is_taken_over(service):
    first = service.attach(make_loader(), run="r", policy="shuffle")
    ids_of(first, 2)
    second = service.attach(make_loader(), run="r", policy="shuffle")
    assert sorted(ids_of(second)) == EVERYTHING
    with pytest.raises(sampler.Stale, match="its rank was left or taken over"):
        ids_of(first)
    first.close()
    assert sorted(ids_of(second)) == EVERYTHING, "closing it late does the new one no harm"


def test_a_run_that_is_open_otherwise_is_a_conflict_that_harms_nobody(service):
    first = service.attach(make_loader(), run="r", policy="shuffle")
    with pytest.raises(sampler.Conflict, match="policy is 'shuffle', asked for 'importance'"):
        service.attach(make_loader(), run="r", policy="importance")
    assert sorted(ids_of(first)) == EVERYTHING
    service.close_run("r")
    with pytest.raises(sampler.Stale, match="run 'r' was closed; attach again"):
        ids_of(first)
    service.attach(make_loader(), run="r", policy="importance")
    with pytest.raises(sampler.NotFound, match="knows no session"):
        ids_of(first)


def test_runs_do_not_disturb_one_another(service):
    alone = ids_of(service.attach(make_loader(), run="alone", dataset="d", policy="shuffle"))
    one, two = (service.attach(make_loader(), run=run, dataset="d", policy="shuffle") for run in ("one", "two"))
    pairs = [(a.example_ids.tolist(), b.example_ids.tolist()) for (_, a), (_, b) in zip(one, two, strict=True)]
    assert [i for ids, _ in pairs for i in ids] == [i for _, ids in pairs for i in ids] == alone


def test_two_ranks_of_one_thread_share_an_epoch_though_one_is_long_silent(service, monkeypatch):
    monkeypatch.setattr("sampler_service.leases.SILENT_S", 0.1)
    ranks = [
        service.attach(make_loader(), run="r", policy="shuffle", rank=rank, world_size=2, lease_s=0.1)
        for rank in range(2)
    ]
    second = iter(ranks[1])
    _, batch = next(second)
    time.sleep(0.3)  # over a connection rank 1 would be lost by now, and what it holds given to rank 0
    first = ids_of(ranks[0])
    rest = [i for _, batch in second for i in batch.example_ids.tolist()]
    assert sorted([*first, *batch.example_ids.tolist(), *rest]) == EVERYTHING
    assert service.statistics("r").leases_expired == 0


def test_two_ranks_in_threads_get_each_example_once(service):
    parts: dict[int, list[int]] = {}

    def loop(rank: int) -> None:
        loader = service.attach(make_loader(), run="r", policy="shuffle", rank=rank, world_size=2)
        parts[rank] = [i for _ in range(3) for i in ids_of(loader)]

    threads = [threading.Thread(target=loop, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(parts[0] + parts[1]) == sorted(EVERYTHING * 3)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"policy": "no-such"}, "unknown policy 'no-such'; choose one of .*'shuffle'"),
        ({"batchsize": 3}, r"unknown options \['batchsize'\]"),
        ({"rank": 2, "world_size": 2}, "got rank 2 of world_size 2"),
        ({"on_lost": "ask"}, "on_lost must be 'redeliver' or 'drop'"),
        ({"queue": 0}, "queue must be at least 1, got 0"),
        ({"max_lead": 1}, "open the run with a larger max_lead"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_as_over_the_wire(service, options, says):
    with pytest.raises(sampler.ConfigError, match=says):
        service.attach(make_loader(), run="r", **{"policy": "shuffle", **options})


def test_what_it_does_not_know_is_said_by_the_errors_of_the_client(service):
    with pytest.raises(sampler.NotFound, match="statistics of run 'none': unknown run 'none'"):
        service.statistics("none")
    service.attach(make_loader(), run="r", policy="shuffle")
    with pytest.raises(sampler.ConfigError, match="set groups of run 'r'"):
        service.set_groups("r", np.zeros(3, np.int64))
    with pytest.raises(sampler.ConfigError, match="9999"):
        service.explain("r", 9999)


def test_a_report_that_does_not_fit_the_run_is_refused_where_it_is_made(service):
    loader = service.attach(make_loader(), run="r", policy="shuffle", sketch_dim=DIM)
    ids = np.arange(3)
    rows = ReportRows(
        batch_id=0, step=0, example_ids=ids, losses=np.ones(3, np.float32), sketches=np.ones((3, 5), "f4")
    )
    with pytest.raises(sampler.ConfigError, match=r"send reports.*5"):
        loader.sampler.source.put(rows)
    assert loader.reports.refused == 1


def test_a_batch_that_can_not_come_ends_the_wait_with_a_reason(service):
    loader = service.attach(make_loader(), run="r", policy="shuffle", ahead=1, timeouts=sampler.Timeouts(batch_s=0.2))
    source = loader.sampler.source
    source.start_epoch(0, 0)
    assert source.next() is not None
    with pytest.raises(
        sampler.ReplyTimeout, match=r"rank 0 of run 'r' got no batch of epoch 0 within 0.2 s: it holds all 1"
    ):
        source.next()


def test_it_has_no_records_to_stream_and_says_so_at_once(service):
    with pytest.raises(sampler.ConfigError, match="holds no records: attach a DataLoader"):
        service.batches(run="r", dataset="d", batch_size=4)
    with pytest.raises(sampler.ConfigError, match=r'needs the "host:port" of a service .* got a LocalService'):
        sampler.RemoteBatches(service, run="r", dataset="d", batch_size=4)


def test_it_can_not_be_sent_to_another_process(service):
    with pytest.raises(TypeError, match=r"LocalService can't be sent to another process.*sampler-service up"):
        pickle.dumps(service)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shards": 0}, "shards must be at least 1, got 0"),
        ({"scoring": "digits"}, "package.module:factory, got 'digits'"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings, says):
    with pytest.raises(sampler.ConfigError, match=says):
        LocalService(**settings)


def test_leaving_the_block_closes_loaders_and_runs():
    with LocalService() as service:
        loader = service.attach(make_loader(), run="r", policy="shuffle")
    assert service.runs() == []
    with pytest.raises(sampler.SamplerError):
        ids_of(loader)
    loader.close()


def test_a_data_set_grows_and_loses_examples(service: LocalService) -> None:
    data = list(range(12))
    loader = service.attach(DataLoader(data, batch_size=4), run="grows", policy="shuffle")
    seen = [sorted(i for batch, _ in loader for i in batch.tolist())]
    data += range(12, 20)
    loader.grow()
    seen.append(sorted(i for batch, _ in loader for i in batch.tolist()))
    loader.delete([0, 19])
    seen.append(sorted(i for batch, _ in loader for i in batch.tolist()))
    assert seen == [list(range(12)), list(range(20)), list(range(1, 19))]
