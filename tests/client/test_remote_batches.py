"""Records that come with batches, over a real gRPC server and with real DataLoader workers."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client.testing import FakeSession
from tests.client.conftest import BATCH, STEPS, N, remote
from tests.memory_records import MemoryRecords, png, table_of
from tests.served import ServedService

# Workers of a forkserver that has imported torch start in a tenth of a second, instead of two.
multiprocessing.get_context("forkserver").set_forkserver_preload(["sampler_client.pytorch.remote_batches"])

WORKERS = [
    pytest.param({}, id="in-process"),
    pytest.param({"num_workers": 2, "multiprocessing_context": "forkserver"}, id="two-that-end"),
    pytest.param(
        {"num_workers": 2, "multiprocessing_context": "forkserver", "persistent_workers": True}, id="two-that-stay"
    ),
]


@pytest.fixture
def recorded() -> Iterator[ServedService]:
    """A server that holds N records under the name "numbers"."""
    served = ServedService(records=MemoryRecords("numbers", table_of(N)))
    yield served
    served.stop()


def loader_over(records: sampler.RemoteBatches, **workers: Any) -> DataLoader:
    return DataLoader(records, batch_size=None, **workers)


def numbers(columns: Mapping[str, Any]) -> list[int]:
    return columns["number"].tolist()


def square(record: Mapping[str, Any]) -> torch.Tensor:
    return record["number"] ** 2


def fails_at_13(record: Mapping[str, Any]) -> torch.Tensor:
    if record["number"] == 13:
        raise ValueError("no such luck")
    return record["number"]


@pytest.mark.parametrize("workers", WORKERS)
def test_epochs_are_those_of_one_stream_whatever_the_workers(recorded: ServedService, workers: dict[str, Any]) -> None:
    plain = sampler.SamplerClient(recorded.address).batches(
        run="plain", dataset="numbers", batch_size=BATCH, policy="shuffle"
    )
    with plain as stream:
        expected = [[batch.example_ids.tolist() for batch in stream] for _ in range(2)]
    with remote(recorded) as records:
        loader = loader_over(records, **workers)
        epochs = [[(numbers(columns), batch.example_ids.tolist()) for columns, batch in loader] for _ in range(2)]
    assert [[ids for _, ids in epoch] for epoch in epochs] == expected
    assert all(found == ids for epoch in epochs for found, ids in epoch)
    assert [sorted(i for _, ids in epoch for i in ids) for epoch in epochs] == [list(range(N))] * 2


@pytest.mark.parametrize("workers", WORKERS)
def test_what_the_loop_reports_is_in_the_table(recorded: ServedService, workers: dict[str, Any]) -> None:
    with remote(recorded) as records:
        for _ in range(2):
            for columns, batch in loader_over(records, **workers):
                batch.report(columns["number"].float())
            if workers.get("persistent_workers"):
                records.set_epoch(1)
        records.flush()
        assert records.reports.accepted == 2 * N
        assert (records.reports.dropped, records.reports.rejected) == (0, {})
    assert recorded.service.statistics("run").reported_rows == 2 * N
    assert recorded.service.explain("run", 17, 1).example.loss == 17.0


def test_columns_become_tensors_and_lists(recorded: ServedService) -> None:
    with remote(recorded, columns=("vector", "number", "text", "image")) as records:
        columns, batch = next(iter(loader_over(records)))
    ids = torch.from_numpy(batch.example_ids.copy())
    assert list(columns) == ["vector", "number", "text", "image"]
    assert columns["number"].dtype == torch.int64
    assert torch.equal(columns["number"], ids)
    assert columns["vector"].dtype == torch.float32
    assert torch.equal(columns["vector"], torch.stack([ids, ids + 1], dim=1).float())
    assert columns["text"] == [f"example {i}" for i in ids.tolist()]
    assert columns["image"] == [png(i) for i in ids.tolist()]


def test_the_service_decodes_images_on_request(recorded: ServedService) -> None:
    decode = [sampler.DecodeImage(column="image", mode="L", height=6, width=8)]
    with remote(recorded, columns=("image",), decode=decode) as records:
        columns, batch = next(iter(loader_over(records)))
    assert columns["image"].dtype == torch.uint8
    shades = torch.from_numpy(batch.example_ids.astype(np.uint8))
    assert torch.equal(columns["image"], shades[:, None, None, None].expand(-1, 6, 8, 1))


def test_an_image_that_can_not_be_sent_ends_the_stream_by_its_name(recorded: ServedService) -> None:
    table = table_of(N)
    files = [*table["image"].to_pylist()[:-1], png(1, size=(9, 9))]
    recorded.stop()
    recorded.records = MemoryRecords("numbers", table.set_column(3, "image", pa.array(files, pa.binary())))
    recorded.start()
    with (
        remote(recorded, decode=[sampler.DecodeImage(column="image")]) as records,
        pytest.raises(sampler.ConfigError, match=f"example {N - 1} has 9 x 9 pixels"),
    ):
        list(loader_over(records))
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("read-ahead") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the stream has ended, and the thread that takes batches for it has not"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", WORKERS[:2])
def test_a_transform_sees_one_record_at_a_time(recorded: ServedService, workers: dict[str, Any]) -> None:
    with remote(recorded, transform=square) as records:
        for squares, batch in loader_over(records, **workers):
            assert squares.tolist() == (batch.example_ids**2).tolist()


@pytest.mark.parametrize("workers", WORKERS[:2])
def test_a_transform_that_fails_names_the_example(recorded: ServedService, workers: dict[str, Any]) -> None:
    failure = pytest.raises(sampler.RecordError, match="example 13: ValueError: no such luck")
    with remote(recorded, transform=fails_at_13) as records, failure:
        list(loader_over(records, **workers))


@pytest.mark.parametrize("workers", WORKERS[::2])
@pytest.mark.parametrize(("last", "sizes"), [("partial", [8] * 6 + [2]), ("drop", [8] * 6), ("fill", [8] * 7)])
def test_ragged_ends(recorded: ServedService, last: str, sizes: list[int], workers: dict[str, Any]) -> None:
    with remote(recorded, last=last) as records:
        batches = list(loader_over(records, **workers))
    assert [len(columns["number"]) for columns, _ in batches] == sizes
    assert all(numbers(columns) == batch.example_ids.tolist() for columns, batch in batches)
    assert sum(float(batch.weights.sum()) for _, batch in batches) == min(N, sum(sizes))
    # The sum over the epoch is that of the examples, each once: repeats weigh nothing.
    losses = [torch.from_numpy(batch.example_ids.astype(np.float32)) for _, batch in batches]
    total = sum(float(b.weighted_mean(x)) * b.global_batch_size for x, (_, b) in zip(losses, batches, strict=True))
    assert total == pytest.approx(sum(i for _, b in batches for i in b.example_ids[: b.global_batch_size]))
    assert batches[-1][1].position == {"version": 1, "run": "run", "epoch": 1, "examples": 0}, "no empty pass is left"


@pytest.mark.parametrize("before", WORKERS)
@pytest.mark.parametrize("after", WORKERS)
def test_training_goes_on_behind_a_batch(
    recorded: ServedService, before: dict[str, Any], after: dict[str, Any]
) -> None:
    with remote(recorded) as records:
        whole = [numbers(columns) for columns, _ in loader_over(records, **before)]
    with remote(recorded, run="second") as records:
        loader = loader_over(records, **before)
        for step, (columns, batch) in enumerate(loader):
            assert numbers(columns) == whole[step]
            if step == 2:
                position = batch.position
                break
        del loader
    assert position is not None
    assert {**position, "population": ""} == {
        "version": 1,
        "run": "second",
        "epoch": 0,
        "examples": 24,
        "population": "",
        "num_examples": N,
    }
    with remote(recorded, run="second") as records:
        records.load_state_dict(position)
        records.set_epoch(0)  # as frameworks do; it must not undo the position
        loader = loader_over(records, **after)
        assert [numbers(columns) for columns, _ in loader] == whole[3:]
        following = [numbers(columns) for columns, _ in loader]
    assert sorted(i for ids in following for i in ids) == list(range(N))
    assert following != whole


def test_two_ranks_with_two_workers_each_share_every_step(recorded: ServedService) -> None:
    ranks = [remote(recorded, batch_size=5, rank=rank, world_size=2) for rank in range(2)]
    how = {"num_workers": 2, "multiprocessing_context": "forkserver"}
    loops = [iter(loader_over(records, **how)) for records in ranks]
    steps = list(zip(*loops, strict=True))  # in step: neither rank ends before the other
    for records in ranks:
        records.close()
    assert len(steps) == 5
    assert all({batch.step for _, batch in step} == {at} for at, step in enumerate(steps))
    assert all({batch.global_batch_size for _, batch in step} == {10} for step in steps)
    assert sorted(i for step in steps for columns, _ in step for i in numbers(columns)) == list(range(N))


def test_a_restored_position_is_said_before_the_next_batch(recorded: ServedService) -> None:
    with remote(recorded) as records:
        records.load_state_dict({"version": 1, "run": "run", "epoch": 2, "examples": 16})
        said = records.state_dict()
        assert (said["epoch"], said["examples"], said["received"]) == (2, 16, 0)


def test_another_number_of_workers_needs_an_epoch(recorded: ServedService) -> None:
    with remote(recorded) as records:
        list(loader_over(records))
        two = loader_over(records, num_workers=2, multiprocessing_context="forkserver")
        with pytest.raises(sampler.ConfigError, match=r"2 workers, the one before had 1: call set_epoch") as raised:
            list(two)
        del raised  # and with it the iterator, which ends its workers
        records.close()
        records.set_epoch(1)
        assert len(list(two)) == STEPS


def test_a_forked_worker_is_refused_with_what_to_write(recorded: ServedService) -> None:
    with sampler.SamplerClient(recorded.address) as client:
        client.runs()  # this process has used gRPC
    with remote(recorded) as records, pytest.raises(sampler.ConfigError, match='multiprocessing_context="spawn"'):
        list(loader_over(records, num_workers=1, multiprocessing_context="fork"))


def test_what_is_not_there_is_said(recorded: ServedService) -> None:
    with pytest.raises(sampler.NotFound, match="sampler-service ingest URI --name letters"):
        list(remote(recorded, dataset="letters"))
    with pytest.raises(sampler.ConfigError, match=r"no column 'label' in these records; there are \['number'"):
        list(remote(recorded, run="a", columns=("label",)))
    with pytest.raises(sampler.ConfigError, match="'text' has string"):
        list(remote(recorded, run="b", decode=[sampler.DecodeImage(column="text")]))
    with pytest.raises(sampler.ConfigError, match="last must be"):
        remote(recorded, last="round")
    with pytest.raises(sampler.ConfigError, match="give both, or neither"):
        remote(recorded, collate_fn=list)
    with pytest.raises(sampler.Stale, match="run 'other'"):
        remote(recorded).load_state_dict({"version": 1, "run": "other", "epoch": 0, "examples": 0})


def test_a_batch_without_records_says_so() -> None:
    session = FakeSession(5, batch_size=2)
    session.start_epoch(0, skip_examples=0)
    message = session.next()
    assert message is not None
    with pytest.raises(sampler.ConfigError, match="come without records"):
        _ = sampler.Batch(message).records


def test_a_stream_that_breaks_goes_on_with_its_records(recorded: ServedService) -> None:
    with remote(recorded) as records:
        seen: list[int] = []
        for columns, _ in loader_over(records):
            seen += numbers(columns)
            if len(seen) == 3 * BATCH:
                recorded.stop()
                recorded.start()
                time.sleep(0.2)
    assert sorted(seen) == list(range(N))
