"""What comes out of an attached DataLoader is the dataset at the handle's ids, whatever its workers are."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import sampler_client as sampler

N, BATCH, STEPS = 30, 4, 8

WORKERS = [
    pytest.param({}, id="in-process"),
    *(
        pytest.param(
            {"num_workers": 2, "multiprocessing_context": start, "persistent_workers": keep}, id=f"{start}-{keep}"
        )
        for start in ("fork", "spawn", "forkserver")
        for keep in (False, True)
    ),
]


class Squares(Dataset):
    """Example i is (i, i squared)."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor(float(index**2))


class AskingTheService(Squares):
    """Asks the service from inside the worker, over a client that was used in the parent before."""

    def __init__(self, client: sampler.SamplerClient, run: str) -> None:
        self._client = client
        self._run = run

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor(float(self._client.statistics(self._run).num_examples))


def as_dict(rows: list[tuple[int, torch.Tensor]]) -> dict[str, list[float]]:
    return {"index": [row[0] for row in rows], "square": [row[1].item() for row in rows]}


def name_the_worker(worker: int) -> None:
    get_worker_info().dataset.worker = worker


class NamingItsWorker(Squares):
    worker = -1

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor(self.worker)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.timeout(120)
def test_every_epoch_yields_every_example_once_and_in_the_order_of_its_handle(served, workers):
    with sampler.attach(
        DataLoader(Squares(), batch_size=BATCH, **workers), served.address, run="r", policy="shuffle"
    ) as loader:
        for epoch in range(3 if loader.loader.persistent_workers or not workers else 2):
            seen = []
            for step, ((ids, squares), batch) in enumerate(loader):
                assert (batch.epoch, batch.step) == (epoch, step)
                assert ids.tolist() == batch.example_ids.tolist()
                assert torch.equal(squares, ids.float() ** 2)
                seen += ids.tolist()
            assert sorted(seen) == list(range(N))


@pytest.mark.parametrize(
    "workers", [each for each in WORKERS if each.id in ("in-process", "spawn-True", "forkserver-True")]
)
@pytest.mark.timeout(120)
def test_a_dataset_may_ask_the_service_from_its_workers(served, workers):
    with sampler.SamplerClient(served.address) as client:
        client.register_dataset("r", N)  # the parent's channel is open before the workers start
        dataset = AskingTheService(client, "r")
        with sampler.attach(
            DataLoader(dataset, batch_size=BATCH, **workers), served.address, run="r", policy="shuffle"
        ) as loader:
            for _ in range(2):
                answers = torch.cat([sizes for (_, sizes), _ in loader])
                assert answers.tolist() == [N] * N
        assert client.runs() == ["r"]


def test_a_forked_worker_that_asks_the_service_gets_an_error_that_says_what_to_do(served):
    with sampler.SamplerClient(served.address) as client:
        client.register_dataset("r", N)
        plain = DataLoader(
            AskingTheService(client, "r"), batch_size=BATCH, num_workers=2, multiprocessing_context="fork"
        )
        with (
            sampler.attach(plain, served.address, run="r", policy="shuffle") as loader,
            pytest.raises(sampler.ConfigError, match='multiprocessing_context="spawn"'),
        ):
            next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_of_the_loader_is_kept(served, workers):
    plain = DataLoader(Squares(), batch_size=BATCH, num_workers=workers, collate_fn=as_dict)
    with sampler.attach(plain, served.address, run="r", policy="shuffle") as loader:
        for item, batch in loader:
            ids = batch.example_ids.tolist()
            assert item == {"index": ids, "square": [float(i**2) for i in ids]}


def test_a_worker_init_function_is_kept(served):
    plain = DataLoader(NamingItsWorker(), batch_size=BATCH, num_workers=2, worker_init_fn=name_the_worker)
    with sampler.attach(plain, served.address, run="r", policy="shuffle") as loader:
        assert {worker for (_, workers), _ in loader for worker in workers.tolist()} == {0, 1}


def test_the_other_settings_of_the_loader_are_kept(served):
    generator = torch.Generator()
    plain = DataLoader(
        Squares(), batch_size=BATCH, drop_last=True, pin_memory=True, timeout=30, num_workers=1, generator=generator
    )
    with sampler.attach(plain, served.address, run="r", policy="shuffle") as loader:
        assert loader.loader.pin_memory
        assert loader.loader.timeout == 30
        assert loader.loader.generator is generator
        assert loader.dataset is plain.dataset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that there is no accelerator to pin memory for
            assert [len(ids) for (ids, _), _ in loader] == [BATCH] * (N // BATCH)


def test_a_failing_dataset_fails_the_loop_and_the_next_epoch_still_comes(served):
    class Failing(Squares):
        fails = True

        def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
            if self.fails:
                raise OSError(f"can't read example {index}")
            return super().__getitem__(index)

    dataset = Failing()
    with sampler.attach(DataLoader(dataset, batch_size=BATCH), served.address, run="r", policy="shuffle") as loader:
        with pytest.raises(OSError, match="can't read example"):
            next(iter(loader))
        dataset.fails = False
        assert sorted(i for (ids, _), _ in loader for i in ids.tolist()) == list(range(N))
