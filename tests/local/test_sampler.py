"""LocalSampler: the right frequencies at any size, shared by ranks, resumed where it was."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader, TensorDataset

from sampler_service.errors import ConfigError, Stale
from sampler_service.local import LocalSampler
from sampler_service.local import sampler as module

ABOVE_2E24 = (1 << 24) + 1000
WEIGHTS = np.random.default_rng(0).lognormal(size=30)


def ranks(world: int, num_samples: int, weights=WEIGHTS, **options) -> list[LocalSampler]:
    return [LocalSampler(weights, num_samples, num_replicas=world, rank=r, **options) for r in range(world)]


def interleaved(parts: list[list[int]]) -> list[int]:
    """The draws in their global order: one of each rank in turn."""
    return [i for turn in zip(*parts, strict=True) for i in turn]


# --- what is drawn ---


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3),
    st.integers(1, 200),
    st.integers(0, 3),
)
def test_every_example_comes_its_share_of_times_an_epoch_within_one(weights, num_samples, seed):
    ids = list(LocalSampler(weights, num_samples, seed=seed))
    share_n = num_samples * np.array(weights) / sum(weights)
    count_n = np.bincount(ids, minlength=len(weights))
    assert len(ids) == num_samples
    assert (np.abs(count_n - share_n) < 1 + 1e-6).all()
    assert (count_n[share_n == 0] == 0).all()


def test_single_draws_have_the_chances_of_the_weights():
    sampler = LocalSampler([1, 2, 3, 0, 10], num_samples=2)
    first, second = zip(*(list(sampler) for _ in range(8000)), strict=True)
    for draws in (first, second):  # the order says nothing about the example
        count_n = np.bincount(draws, minlength=5)
        assert count_n[3] == 0
        assert chisquare(count_n[[0, 1, 2, 4]], 8000 * np.array([1, 2, 3, 10]) / 16).pvalue > 0.001


def test_even_weights_make_shuffled_epochs():
    sampler = LocalSampler(np.ones(50), num_samples=50)
    epochs = [list(sampler) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_above_2_to_the_24_follow_the_weights(replacement):
    """torch.multinomial refuses as many, and in float32 a running sum stops growing there."""
    weight_n = np.ones(ABOVE_2E24, dtype=np.float32)
    weight_n[: ABOVE_2E24 // 2] = 2
    ids = LocalSampler(weight_n, 400_000, replacement=replacement)._draw(0)
    bins = 64
    observed = np.bincount(ids * bins // ABOVE_2E24, minlength=bins)
    expected = np.bincount(np.arange(ABOVE_2E24) * bins // ABOVE_2E24, weights=weight_n, minlength=bins)
    if not replacement:  # those drawn are missing from then on: 1 - (1 - p)^m of each, to first order
        chance_n = 1 - np.exp(-400_000 * weight_n.astype(np.float64) / weight_n.sum(dtype=np.float64))
        expected = np.bincount(np.arange(ABOVE_2E24) * bins // ABOVE_2E24, weights=chance_n, minlength=bins)
        assert len(np.unique(ids)) == 400_000
    assert 0.001 < chisquare(observed, expected / expected.sum() * len(ids)).pvalue < 0.9999
    assert (ids > 1 << 24).any()


def test_weights_may_be_a_list_an_array_or_a_tensor_of_any_type():
    wanted = list(LocalSampler([1, 2, 3], 12))
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2, 3]))
    for weights in (np.array([1, 2, 3], np.int8), torch.tensor([1, 2, 3], dtype=torch.bfloat16), parameter):
        assert list(LocalSampler(weights, 12)) == wanted


def test_weights_are_copied():
    weights = np.array([1.0, 0, 0])
    sampler = LocalSampler(weights, 5)
    weights[:] = [0, 0, 1]
    assert list(sampler) == [0] * 5
    with pytest.raises(ValueError, match="read-only"):
        sampler.weights[0] = 7


def test_it_works_under_a_dataloader_with_workers_as_without():
    dataset = TensorDataset(torch.arange(30))
    epochs = []
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=4, sampler=LocalSampler(WEIGHTS, 30), num_workers=workers)
        assert len(loader) == 8
        epochs.append([[ids.tolist() for (ids,) in loader] for _ in range(2)])
    assert epochs[0] == epochs[1]
    assert epochs[0][0] != epochs[0][1]


# --- ranks ---


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("world", [2, 3, 4, 12])
def test_ranks_share_one_draw_whatever_their_number(world, replacement):
    alone = list(LocalSampler(WEIGHTS, 24, replacement=replacement))
    samplers = ranks(world, 24, replacement=replacement)
    assert [len(sampler) for sampler in samplers] == [24 // world] * world
    assert interleaved([list(sampler) for sampler in samplers]) == alone


def test_the_first_draws_are_repeated_to_even_out_the_ranks_or_the_last_left_out():
    alone = list(LocalSampler(WEIGHTS, 10))
    padded, cut = ranks(4, 10), ranks(4, 10, drop_last=True)
    assert [len(sampler) for sampler in padded + cut] == [3] * 4 + [2] * 4
    assert interleaved([list(sampler) for sampler in padded]) == alone + alone[:2]
    assert interleaved([list(sampler) for sampler in cut]) == alone[:8]


def test_more_ranks_than_draws_each_get_one():
    parts = [list(sampler) for sampler in ranks(5, 2)]
    assert [len(part) for part in parts] == [1] * 5
    assert interleaved(parts) == (list(LocalSampler(WEIGHTS, 2)) * 3)[:5]


def test_the_rank_comes_from_the_arguments_then_torch_distributed_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def place(**options) -> tuple[int, int]:
        sampler = LocalSampler([1.0], 8, **options)
        return sampler.num_replicas, sampler.rank

    assert place() == (1, 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place() == (4, 3)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert place() == (1, 0)
        assert place(num_replicas=3, rank=2) == (3, 2)
    finally:
        torch.distributed.destroy_process_group()


# --- epochs and new weights ---


def test_an_epoch_is_a_function_of_seed_and_epoch():
    sampler, other = LocalSampler(WEIGHTS, 30), LocalSampler(WEIGHTS, 30, seed=1)
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1] != epochs[2]
    assert list(sampler) == epochs[2], "without set_epoch the next one follows"
    assert list(other) != epochs[0]


def test_set_epoch_may_be_said_again():
    sampler, plain = LocalSampler(WEIGHTS, 30), LocalSampler(WEIGHTS, 30)
    for epoch in range(3):
        for _ in range(3):
            sampler.set_epoch(epoch)
        assert list(sampler) == list(plain)
    sampler.load_state_dict({**sampler.state_dict(), "epoch": 5, "examples": 12})
    sampler.set_epoch(5)
    assert len(list(sampler)) == 18, "a restored position is kept"
    sampler.set_epoch(5)
    assert len(list(sampler)) == 30


def test_new_weights_count_from_the_next_iteration_on():
    sampler = LocalSampler([1.0, 0, 0], 6)
    under_way = iter(sampler)
    assert next(under_way) == 0
    sampler.update(torch.tensor([0, 0, 2]))
    assert list(under_way) == [0] * 5
    assert list(sampler) == [2] * 6


def test_new_weights_that_are_wrong_change_nothing():
    sampler = LocalSampler([1.0, 0, 0], 6)
    with pytest.raises(ConfigError, match="same 3 examples, got 4"):
        sampler.update([1, 1, 1, 1])
    with pytest.raises(ConfigError, match=r"weight -1\.0 of example 1"):
        sampler.update([1, -1, 1])
    assert list(sampler) == [0] * 6


# --- positions ---


def saved(sampler: LocalSampler) -> dict:
    """The position as it comes back from a checkpoint."""
    return json.loads(json.dumps(sampler.state_dict()))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("received", [0, 1, 7, 29, 30])
def test_what_was_not_yielded_comes_after_restoring(received, replacement):
    whole = LocalSampler(WEIGHTS, 30, replacement=replacement)
    epochs = [list(whole) for _ in range(3)]
    sampler = LocalSampler(WEIGHTS, 30, replacement=replacement)
    list(sampler)
    assert list(islice(sampler, received)) == epochs[1][:received]
    for _ in range(2):  # restoring twice gives the same twice
        after = LocalSampler(WEIGHTS, 30, replacement=replacement)
        after.load_state_dict(saved(sampler))
        rest = [*list(after), *list(after)]
        assert rest[: 60 - received] == [*epochs[1], *epochs[2]][received:]


def test_positions_are_counted_through_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 4)
    sampler = LocalSampler(WEIGHTS, 30)
    under_way = iter(sampler)
    counts = [(next(under_way), sampler.state_dict()["examples"])[1] for _ in range(30)]
    assert counts == list(range(1, 31))
    assert next(under_way, None) is None
    assert sampler.state_dict()["examples"] == 30


def test_an_iteration_that_a_newer_one_displaced_is_not_counted():
    sampler = LocalSampler(WEIGHTS, 30)
    first, second = iter(sampler), iter(sampler)
    list(islice(first, 5))
    list(islice(second, 2))
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["examples"]) == (1, 2)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 4), (4, 2)])
def test_another_number_of_ranks_goes_on_with_what_is_left(before, after):
    alone = list(LocalSampler(WEIGHTS, 36))
    samplers = ranks(before, 36)
    done = interleaved([list(islice(sampler, 12 // before)) for sampler in samplers])
    states = [saved(sampler) for sampler in samplers]
    assert all(state == states[0] for state in states), "any rank's will do"
    others = ranks(after, 36)
    for sampler in others:
        sampler.load_state_dict(states[0])
    assert done + interleaved([list(sampler) for sampler in others]) == alone


def test_what_a_dataloader_prefetched_is_given_again_when_the_loop_says_what_it_received():
    dataset = TensorDataset(torch.arange(30))
    alone = list(LocalSampler(WEIGHTS, 30))

    def loader(sampler: LocalSampler) -> DataLoader:
        return DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=1, prefetch_factor=3)

    sampler = LocalSampler(WEIGHTS, 30)
    batches = iter(loader(sampler))
    received = [i for _ in range(2) for i in next(batches)[0].tolist()]
    state = saved(sampler)
    del batches
    assert state["examples"] > 8 == len(received)
    resumed = LocalSampler(WEIGHTS, 30)
    resumed.load_state_dict(state, examples=8)
    assert received + [i for (ids,) in loader(resumed) for i in ids.tolist()] == alone


def test_a_prefetched_end_of_the_epoch_does_not_end_it_for_the_loop():
    sampler = LocalSampler(WEIGHTS, 30)
    ids = list(sampler)
    resumed = LocalSampler(WEIGHTS, 30)
    resumed.load_state_dict(saved(sampler), examples=20)
    assert list(resumed) == ids[20:]


def test_a_position_inside_an_epoch_of_other_draws_is_refused():
    sampler = LocalSampler(WEIGHTS, 30)
    list(islice(sampler, 3))
    state = saved(sampler)
    with pytest.raises(Stale, match="seed was 0, is 9"):
        LocalSampler(WEIGHTS, 30, seed=9).load_state_dict(state)
    with pytest.raises(Stale, match="num_samples was 30, is 31"):
        LocalSampler(WEIGHTS, 31).load_state_dict(state)
    with pytest.raises(Stale, match=r"weights was 30 of checksum .*, is 30 of checksum "):
        LocalSampler(WEIGHTS + 1, 30).load_state_dict(state)
    with pytest.raises(Stale, match="replacement was True, is False"):
        LocalSampler(WEIGHTS, 30, replacement=False).load_state_dict(state)
    with pytest.raises(Stale, match="has version 7, this sampler reads 1"):
        sampler.load_state_dict({**state, "version": 7})
    with pytest.raises(ConfigError, match="examples must be at most the 3 that were yielded of epoch 0, got 4"):
        sampler.load_state_dict(state, examples=4)
    LocalSampler(WEIGHTS + 1, 30).load_state_dict({**state, "examples": 0})  # at an epoch's start nothing is owed


def test_a_position_is_of_the_weights_that_its_epoch_began_with():
    sampler = LocalSampler(WEIGHTS, 30)
    whole = list(LocalSampler(WEIGHTS, 30))
    list(islice(sampler, 10))
    sampler.update(WEIGHTS + 1)
    state = saved(sampler)
    with pytest.raises(Stale, match="weights was"):
        LocalSampler(WEIGHTS + 1, 30).load_state_dict(state)
    resumed = LocalSampler(WEIGHTS, 30)
    resumed.load_state_dict(state)
    resumed_ids = iter(resumed)
    resumed.update(WEIGHTS + 1)
    assert list(resumed_ids) == whole[10:]
    sampler.set_epoch(1)
    assert list(resumed) == list(sampler)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": [1, -2, 1]}, r"weight -2\.0 of example 1 must be finite and at least 0"),
        ({"weights": [1, float("nan")]}, "weight nan of example 1"),
        ({"weights": [float("inf"), 1]}, "weight inf of example 0"),
        ({"weights": [0.0, 0.0]}, "all 2 weights are 0"),
        ({"weights": []}, r"weights must have the shape \(n,\) .*got \(0,\)"),
        ({"weights": [[1, 2]]}, r"weights must have the shape \(n,\) .*got \(1, 2\)"),
        ({"weights": 3.0}, r"weights must have the shape \(n,\) .*got \(\)"),
        ({"weights": ["many", "few"]}, "weights must be numbers.*'many'"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2.5}, r"num_samples must be a whole number, got 2\.5"),
        ({"weights": [1, 0, 1], "num_samples": 3, "replacement": False}, "num_samples must be at most 2 .*got 3"),
        ({"num_replicas": 2, "rank": 2}, "rank must be 0 to num_replicas-1, got rank=2 of num_replicas=2"),
        ({"num_replicas": 2, "rank": -1}, "rank must be at least 0, got -1"),
        ({"num_replicas": 0, "rank": 0}, "num_replicas must be at least 1, got 0"),
        ({"rank": 1}, "give both num_replicas and rank or neither, got None and 1"),
        ({"num_replicas": torch.Generator(), "rank": 0}, "num_replicas must be a whole number, got .*Generator"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"replacement": 4}, "replacement must be True or False, got 4: give all behind num_samples by their names"),
        ({"replacement": None}, "replacement must be True or False, got None"),
        ({"num_samples": 2, "num_replicas": 3, "rank": 0, "drop_last": True}, "num_samples=2 for num_replicas=3"),
    ],
)
def test_what_can_not_be_is_refused_with_argument_and_value(arguments, says):
    with pytest.raises(ConfigError, match=says):
        LocalSampler(**{"weights": [1.0, 2.0], "num_samples": 2, **arguments})


def test_arguments_in_the_places_of_another_sampler_are_refused():
    with pytest.raises(ConfigError, match="replacement must be True or False, got 4"):
        LocalSampler(WEIGHTS, 30, 4, 1, 0)
    assert LocalSampler(WEIGHTS, 30, np.bool_(False)).replacement is False


def test_a_rank_of_the_environment_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE must be a whole number, got 'two'"):
        LocalSampler([1.0], 1)


def test_a_negative_epoch_is_refused():
    with pytest.raises(ConfigError, match="epoch must be at least 0, got -1"):
        LocalSampler([1.0], 1).set_epoch(-1)


# --- without replacement ---


def test_first_draws_without_replacement_have_the_chances_of_the_weights_and_second_ones_of_those_left():
    sampler = LocalSampler([1, 2, 5], num_samples=2, replacement=False)
    pairs = Counter(tuple(sampler) for _ in range(8000))
    chance = {(a, b): w[a] / 8 * w[b] / (8 - w[a]) for w in [(1, 2, 5)] for a in range(3) for b in range(3) if a != b}
    assert chisquare([pairs[pair] for pair in chance], [8000 * p for p in chance.values()]).pvalue > 0.001


# --- imports ---


def test_it_is_imported_without_torch_grpc_faiss_and_ray():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from sampler_service.local import LocalSampler; assert sorted(LocalSampler([1, 1], 2)) == [0, 1]\n"
        "heavy = {'grpc', 'google', 'faiss', 'ray', 'sampler_client'}\n"
        "print(*sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_example_in_the_docstring_is_right():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
