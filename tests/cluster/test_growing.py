"""A data set grows and loses examples under a run on Ray, whose actors are killed meanwhile."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

import sampler_client as sampler
from tests.cluster.host_trainer import GROUPS
from tests.cluster.support import PATIENT, until
from tests.cluster.test_end_to_end import train
from tests.cluster.test_failures import below, pids


class Numbers(Dataset):
    """Example i is the number i."""

    size = 64

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (torch.tensor(index),)


def ids_of(batches) -> list[int]:
    return sorted(i for batch in batches for i in batch.example_ids.tolist())


def test_a_run_comes_back_with_what_it_grew_to_and_without_what_was_deleted(attach, service):
    before, dataset = {name: pids(service, name) for name in ("RunHost", "Shard")}, Numbers()
    loader = attach("growing", over=dataset, policy="gradient_clustering", num_clusters=GROUPS, seed=4)
    assert ids_of(train(loader)) == list(range(64))
    dataset.size = 96
    loader.grow()
    gone = {3, 17, 80}
    loader.delete(sorted(gone))
    until(lambda: set(ids_of(train(loader))) == set(range(96)) - gone, "a whole epoch of what there is")
    until(lambda: all((batch.cluster_ids >= 0).all() for batch in train(loader)), "clusters of new examples")
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        said = client.statistics("growing")
        assert (said.num_examples, said.deleted, said.sketch_coverage) == (96, 3, 1.0)

        (host,) = below(service, "RunHost", before["RunHost"])
        shards = below(service, "Shard", before["Shard"])
        ids: list[int] = []
        for step, (_, batch) in enumerate(loader):
            ids += batch.example_ids.tolist()
            if step == 1:
                host.kill()
            if step == 2:
                client.delete_examples("growing", [5, 90])
        assert not gone & set(ids)
        said = client.statistics("growing")
        assert (said.num_examples, said.deleted, said.sketch_coverage) == (96, 5, 1.0)
        gone |= {5, 90}
        assert not gone & set(ids_of(train(loader)))

        # One that came back empty has the number of examples that it was made with, until it is told.
        shards[0].kill()
        until(lambda: len(below(service, "Shard", before["Shard"])) == 2, "two shards again")
        until(lambda: client.statistics("growing").shards_lost == 1, "the loss to show")
        until(lambda: train(loader) and client.statistics("growing").sketch_coverage == 1.0, "all to be reported anew")
        assert client.explain("growing", 90).why[0].startswith("It was deleted")
        assert np.isnan(client.explain("growing", 5).example.loss)


def test_a_sweep_goes_on_in_its_order_when_the_actor_of_a_grown_run_is_killed(attach, service):
    before, dataset = pids(service, "RunHost"), Numbers()
    loader = attach("swept", over=dataset, policy="shuffle")
    dataset.size = 80
    loader.grow()
    loader.delete([1, 2])
    (host,) = below(service, "RunHost", before)
    ids: list[int] = []
    for step, (_, batch) in enumerate(loader):
        ids += batch.example_ids.tolist()
        if step == 1:
            host.kill()
    assert sorted(ids) == sorted(set(range(80)) - {1, 2})
