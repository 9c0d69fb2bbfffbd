"""What a trainer gives beside its reports: held-out sketches, embeddings of pairs, a schedule of policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client.retrieval import MaxOfHinges, PairSketches
from sampler_client.testing import FakeSession, fake_attach
from tests.client.conftest import QUICK

N, DIM = 48, 8


def data() -> TensorDataset:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def test_sketches_of_held_out_examples_order_the_next_epoch(service_address: str):
    torch.manual_seed(0)
    model, dataset = nn.Linear(4, 2), data()
    loader = sampler.attach(
        DataLoader(dataset, batch_size=8), service_address, run="r", policy="poa", sketch_dim=DIM, timeouts=QUICK
    )
    sketcher = sampler.GradientSketcher(model, dim=DIM)
    policies, ids = [], []
    with loader:
        for _ in range(2):
            for (x, y), batch in loader:
                losses = F.cross_entropy(model(x), y, reduction="none")
                batch.weighted_mean(losses).backward()
                batch.report(losses, sketcher)
                policies.append(loader.reason)
                ids.append(batch.example_ids.tolist())
            F.cross_entropy(model(dataset.tensors[0]), dataset.tensors[1]).backward()
            version = loader.set_target(sketcher.take())
            assert version > 0
    assert all("poa needs 50 %" in reason for reason in policies[:6])
    assert policies[6:] == [""] * 6
    for epoch in (ids[:6], ids[6:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(N))


def test_embeddings_of_pairs_bring_those_together_that_are_near(service_address: str):
    """Pairs of eight kinds; those of a kind are near."""
    left = F.normalize(torch.eye(8)[torch.arange(N) % 8] + 0.01 * torch.rand(N, 8), dim=1)
    options = {"begin": 0, "end": 0, "first": 1, "last": 5, "together": 5}
    loader = sampler.attach(
        DataLoader(TensorDataset(left, left), batch_size=6),
        service_address,
        run="r",
        policy="hard_negative",
        policy_options=options,
        sketch_dim=16,
        timeouts=QUICK,
    )
    kinds: list[list[int]] = [[], [], []]
    with loader:
        for epoch in range(3):
            for (a, b), batch in loader:
                losses = MaxOfHinges()(a, b)
                batch.report(losses, PairSketches(a, b))
                kinds[epoch].append(len(set((batch.example_ids % 8).tolist())))
            loader.fence()
    assert np.mean(kinds[0]) > 3.5
    assert np.mean(kinds[2]) < 3
    assert loader.reports.accepted == 3 * N and not loader.reports.rejected


def test_embeddings_are_kept_as_directions_side_by_side():
    left, right = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    pairs = PairSketches(left, right)
    np.testing.assert_allclose(pairs.sketches[0].astype(float), [0.6, 0.8, 1, 0], atol=1e-3)
    assert pairs.usable.tolist() == [True, False]
    assert pairs.take() is pairs and pairs.norms is None
    with pytest.raises(sampler.ConfigError, match=r"got \(2, 2\) and \(2, 3\)"):
        PairSketches(left, torch.zeros(2, 3))
    with pytest.raises(sampler.ConfigError, match="dim must be 1 to 2, the length of an embedding, got 3"):
        PairSketches(left, right, dim=3)


def test_projected_embeddings_keep_their_products():
    left, right = torch.randn(2, 400, 256, generator=torch.Generator().manual_seed(0))
    right[:200] = left[:200] + 0.5 * right[:200]
    pairs = PairSketches(left, right, dim=128)
    assert pairs.sketches.shape == (400, 256)
    halves = pairs.sketches.astype(np.float32).reshape(400, 2, 128)
    products = (halves[:, 0] * halves[:, 1]).sum(1)
    exact = F.cosine_similarity(left, right).numpy()
    assert np.abs(products - exact).mean() < 2 / np.sqrt(128)
    assert np.corrcoef(products, exact)[0, 1] > 0.95


def test_a_fake_loader_remembers_targets():
    loader = fake_attach(DataLoader(data(), batch_size=8))
    loader.set_target(np.ones((2, DIM), np.float32))
    source = loader.sampler.source
    assert isinstance(source, FakeSession)
    assert source.targets[0].shape == (2, DIM)


def test_a_schedule_of_phases_is_served(service_address: str):
    phases = [sampler.Phase(0.5, "shuffle"), sampler.Phase(1, "infobatch", {"prune_ratio": 0.25})]
    loader = sampler.attach(
        DataLoader(data(), batch_size=8), service_address, run="r", phases=phases, epochs=2, timeouts=QUICK
    )
    policies = [[batch.policy for _, batch in loader] for _ in range(2)]
    loader.close()
    assert [set(names) for names in policies] == [{"shuffle"}, {"infobatch"}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phases": []}, r"phases must be some of Phase\(until, policy\), got \[\]"),
        ({"phases": ["shuffle"]}, r"got \['shuffle'\]"),
        ({"phases": [sampler.Phase(1, "shuffle")], "policy": "poa"}, "leave policy='poa' out"),
        ({"phases": [sampler.Phase(1, "shuffle")]}, "say how long: epochs="),
        ({"phases": [sampler.Phase(1, "selective_backprop")], "epochs": 2}, "leaves examples out on purpose"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused(service_address: str, options, words):
    with pytest.raises(sampler.ConfigError, match=words):
        sampler.attach(DataLoader(data(), batch_size=8), service_address, run="r", timeouts=QUICK, **options)


@pytest.mark.parametrize(
    ("until", "words"),
    [(1.5, r"lie in \(0, 1\], got 1.5"), (float("nan"), "got nan"), ("half", "be a number, got 'half'")],
)
def test_a_phase_ends_at_a_share_of_the_run(until, words):
    with pytest.raises(sampler.ConfigError, match=f"^until, .* must .*{words}"):
        sampler.Phase(until, "shuffle")


def test_the_policy_of_a_phase_is_a_name():
    with pytest.raises(sampler.ConfigError, match="policy of a phase must be a name, got 3"):
        sampler.Phase(0.5, 3)  # pyright: ignore[reportArgumentType]
