"""What a batch of records is on its way to the loop: put together by a person's own function, ragged on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

import sampler_client as sampler
from tests.client.conftest import BATCH, N, remote
from tests.memory_records import MemoryRecords, png, table_of
from tests.served import ServedService

BROKEN = 17
"""example whose image begins like one and is none"""


@pytest.fixture
def recorded() -> Iterator[ServedService]:
    """A server that holds N records under the name "numbers"."""
    table = table_of(N)
    images = [png(i) if i != BROKEN else png(i)[:40] for i in range(N)]
    table = table.set_column(table.column_names.index("image"), "image", pa.array(images, pa.binary()))
    served = ServedService(records=MemoryRecords("numbers", table))
    yield served
    served.stop()


def in_lists(items: list[tuple[int, str]]) -> dict[str, Any]:
    ids, texts = zip(*items, strict=True)
    return {"ids": list(ids), "texts": list(texts)}


def pair(record: Mapping[str, Any]) -> tuple[int, str]:
    return int(record["number"]), record["text"]


@pytest.mark.parametrize("workers", [{}, {"num_workers": 2, "multiprocessing_context": "forkserver"}])
def test_items_are_put_together_as_a_person_says(recorded: ServedService, workers: dict[str, Any]) -> None:
    with remote(recorded, transform=pair, collate_fn=in_lists) as records:
        for data, batch in DataLoader(records, batch_size=None, **workers):
            ids = batch.example_ids.tolist()
            assert data == {"ids": ids, "texts": [f"example {i}" for i in ids]}


@pytest.mark.parametrize(("last", "sizes"), [("partial", [8, 8, 8, 1]), ("drop", [8, 8, 8]), ("fill", [8, 8, 8, 8])])
def test_two_ranks_have_as_many_batches_of_as_many_rows_at_a_ragged_end(
    recorded: ServedService, last: str, sizes: list[int]
) -> None:
    ranks = [remote(recorded, last=last, rank=rank, world_size=2) for rank in range(2)]
    loops = [iter(DataLoader(records, batch_size=None)) for records in ranks]
    steps = list(zip(*loops, strict=True))  # in step: neither rank ends before the other
    assert [[len(columns["number"]) for columns, _ in step] for step in steps] == [[size, size] for size in sizes]
    handles = [batch for step in steps for _, batch in step]
    counted = sum(float(batch.weights.sum()) for batch in handles)
    seen = [i for batch in handles for i, weight in zip(batch.example_ids, batch.weights, strict=True) if weight > 0]
    assert len(seen) == len({*seen}) == counted == (N if last != "drop" else 3 * 2 * BATCH)
    # The gradients of both ranks, averaged as DistributedDataParallel does, are those of the global batch's mean.
    for step in steps:
        means = [float(batch.weighted_mean(torch.from_numpy(batch.example_ids.copy()).float())) for _, batch in step]
        ids = [i for _, batch in step for i, w in zip(batch.example_ids, batch.weights, strict=True) if w > 0]
        assert sum(means) / 2 == pytest.approx(sum(ids) / len(ids))
    for records in ranks:
        records.close()


def test_an_image_that_does_not_decode_on_the_service_is_named_in_the_loop(recorded: ServedService) -> None:
    decode = [sampler.DecodeImage(column="image", height=3, width=4)]
    with (
        remote(recorded, columns=("image",), decode=decode) as records,
        pytest.raises(sampler.ConfigError, match=f"example {BROKEN} does not decode .*; delete the example"),
    ):
        list(DataLoader(records, batch_size=None))
