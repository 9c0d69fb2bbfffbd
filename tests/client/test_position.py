"""`state_dict` counts what the training loop received; restoring it loses nothing and repeats nothing."""

from __future__ import annotations

import json

import pytest

import sampler_client as sampler
from tests.client.conftest import BATCH, QUICK, STEPS, N

EVERYTHING = list(range(N))


@pytest.fixture
def attach(served, plain_loader):
    opened = []

    def make(state=None, *, batch_size=BATCH, workers=0, **options) -> sampler.SampledLoader:
        changes = {"num_workers": workers, "batch_size": batch_size, "drop_last": options.pop("drop_last", False)}
        given = {"run": "r", "policy": "shuffle", "timeouts": QUICK, **options}
        loader = sampler.attach(plain_loader(**changes), served.address, **given)
        opened.append(loader)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    yield make
    for loader in opened:
        loader.close()


def ids_of(loader, steps: int | None = None) -> list[int]:
    """Ids of an epoch, or of its first steps; then the loader is left where it is."""
    ids = []
    if steps == 0:
        return ids
    for count, (_, batch) in enumerate(loader, start=1):
        ids += batch.example_ids.tolist()
        if count == steps:
            break
    return ids


def saved(loader) -> dict:
    """The position as it comes back from a checkpoint."""
    state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("steps", range(STEPS))
def test_what_was_not_received_comes_after_restoring(attach, steps, workers):
    first = attach(workers=workers)
    before = ids_of(first, steps)
    state = saved(first)
    assert state["examples"] == steps * BATCH  # not what the workers have prefetched
    first.close()
    second = attach(state)
    assert sorted(before + ids_of(second)) == EVERYTHING
    assert saved(second) == {"version": 1, "run": "r", "epoch": 1, "examples": 0}


def test_a_position_at_the_end_is_the_start_of_the_next_epoch(attach):
    first = attach()
    ids_of(first)
    state = saved(first)
    first.close()
    second = attach(state)
    assert [batch.epoch for _, batch in second] == [1] * STEPS


def test_restoring_twice_gives_the_same_twice(attach):
    first = attach()
    before = ids_of(first, 3)
    state = saved(first)
    first.close()
    rests = []
    for _ in range(2):
        again = attach(state)
        assert saved(again) == state
        rests.append(ids_of(again))
        again.close()
    assert rests[0] == rests[1]
    assert sorted(before + rests[0]) == EVERYTHING


def test_a_restored_loader_can_be_saved_and_restored_again(attach):
    seen, state = [], None
    for steps in (2, 1, 3, None):
        loader = attach(state)
        seen += ids_of(loader, steps)
        state = saved(loader)
        loader.close()
    assert sorted(seen) == EVERYTHING


def test_loading_into_a_loader_in_use_takes_effect_with_the_next_iteration(attach):
    loader = attach()
    first = ids_of(loader, 4)
    state = saved(loader)
    ids_of(loader)
    loader.load_state_dict(state)
    assert sorted(first + ids_of(loader)) == EVERYTHING


def test_the_batch_size_may_be_another_after_restoring(attach):
    first = attach()
    before = ids_of(first, 3)
    state = saved(first)
    first.close()
    assert sorted(before + ids_of(attach(state, batch_size=5, workers=1))) == EVERYTHING


def test_a_frameworks_set_epoch_keeps_a_position_restored_inside_that_epoch(attach):
    first = attach()
    before = ids_of(first, 2)
    state = saved(first)
    first.close()
    second = attach(state)
    second.set_epoch(0)
    assert sorted(before + ids_of(second)) == EVERYTHING


def test_the_world_may_grow_and_shrink_between_restores(attach):
    alone = attach()
    seen = ids_of(alone, 2)
    state = saved(alone)
    alone.close()

    pair = [attach(state, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2)]
    running = [iter(loader) for loader in pair]
    for _ in range(2):
        seen += [i for each in running for i in next(each)[1].example_ids.tolist()]
    assert saved(pair[0]) == saved(pair[1])
    state = saved(pair[0])
    for loader in pair:
        loader.close()

    seen += ids_of(attach(state))
    assert sorted(seen) == EVERYTHING


def test_two_ranks_share_an_epoch_wherever_it_is_resumed(attach):
    pair = [attach(rank=rank, world_size=2, batch_size=4) for rank in range(2)]
    seen = [i for loader in pair for i in ids_of(loader)]
    assert sorted(seen) == EVERYTHING


def test_drop_last_counts_what_was_received(attach):
    first = attach(drop_last=True)
    before = ids_of(first, 5)
    state = saved(first)
    first.close()
    second = attach(state, drop_last=True)
    assert len(set(before + ids_of(second))) == (STEPS - 1) * BATCH
    assert saved(second)["epoch"] == 1


def test_a_position_of_another_run_or_of_a_newer_client_is_refused(attach):
    loader = attach()
    state = saved(loader)
    with pytest.raises(sampler.Stale, match=r"'other'.*'r'"):
        loader.load_state_dict({**state, "run": "other"})
    with pytest.raises(sampler.Stale, match="version 2, this client reads 1"):
        loader.load_state_dict({**state, "version": 2})
    with pytest.raises(sampler.Stale, match="version None"):
        loader.load_state_dict({})


def test_a_position_of_a_larger_dataset_is_refused_or_at_its_end(attach):
    loader = attach(state={"version": 1, "run": "r", "epoch": 0, "examples": 10 * N})
    assert ids_of(loader) == []
    assert sorted(ids_of(loader)) == EVERYTHING


def test_what_a_lost_rank_left_counts_no_second_time(attach, served):
    pair = [attach(rank=rank, world_size=2, batch_size=4) for rank in range(2)]
    ids_of(pair[1], 1)
    pair[1].close()  # its batches go to the other one
    seen, positions = [], []
    for _, batch in pair[0]:
        seen += batch.example_ids.tolist()
        state = saved(pair[0])
        positions.append((state["epoch"], state["examples"]))
    assert set(seen) == set(EVERYTHING)
    assert len(positions) > STEPS
    assert positions == sorted(positions)
    assert positions[STEPS - 1 :] == [(1, 0)] * (len(positions) - STEPS + 1)
