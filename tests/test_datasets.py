"""How a data set changes, and which of its examples a run has. Shapes: n examples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.datasets import Dataset, Examples
from sampler_service.errors import ConfigError, Conflict

CHANGES = st.lists(st.one_of(st.integers(0, 9), st.sets(st.integers(0, 30), min_size=1)), max_size=8)


def changed(changes, size: int = 10) -> tuple[Dataset, list[tuple[int, set[int]]]]:
    """A data set after growing by each number and losing each set, and what it was after each change."""
    dataset, gone = Dataset((size,)), set()
    states = [(size, set(gone))]
    for change in changes:
        before = dataset.version
        if isinstance(change, int):
            dataset = dataset.grown("data", dataset.size + change)
        else:
            ids = {i for i in change if i < dataset.size}
            if not ids or len(gone | ids) == dataset.size:
                continue
            dataset = dataset.without("data", np.array(sorted(ids, reverse=True)))
            gone |= ids
        if dataset.version > before:
            states.append((dataset.size, set(gone)))
    return dataset, states


def ids_in(population) -> set[int]:
    everything = np.arange(population.size)
    deleted = population.without(everything)
    return set(everything.tolist() if deleted is None else everything[~deleted].tolist())


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_every_state_that_it_was_in_is_known_by_its_number(changes):
    dataset, states = changed(changes)
    kept = Dataset.of(json.loads(json.dumps(dataset.state())))
    assert len(states) == dataset.version == kept.version
    for version, (size, gone) in enumerate(states, start=1):
        population = kept.population(size, version)
        assert (population.name, population.size) == (f"{version}.{size}", size)
        assert ids_in(population) == set(range(size)) - gone
        assert (population.alive, population.deleted) == (size - len(gone), len(gone))
        assert population.first == min(set(range(size)) - gone)
    assert (kept.size, kept.deleted) == (states[-1][0], len(states[-1][1]))


def test_a_repeat_is_no_change():
    dataset = Dataset((5,)).grown("data", 8).without("data", np.array([7, 1]))
    assert dataset.grown("data", 8) is dataset
    assert dataset.without("data", np.array([1, 7, 7])) is dataset
    assert dataset.without("data", np.array([1, 2])).deleted_ids().tolist() == [1, 7, 2]
    assert list(dataset.sizes) == [5, 6, 7, 8]


def test_what_can_not_be_changes_nothing_and_is_said_with_its_numbers():
    dataset = Dataset((5,)).without("data", np.array([0]))
    with pytest.raises(Conflict, match="dataset 'data' has 5 examples, asked to grow to 4; it never shrinks"):
        dataset.grown("data", 4)
    with pytest.raises(ConfigError, match=r"example 5 is not one of dataset 'data', whose ids are 0 to 4 \(2 such\)"):
        dataset.without("data", np.array([1, 5, -1]))
    with pytest.raises(ConfigError, match="these 4 ids are all that is left of dataset 'data'"):
        dataset.without("data", np.arange(1, 5))
    assert (dataset.size, dataset.deleted) == (5, 1)


def test_deleted_ids_take_about_a_byte_each_where_they_are_kept():
    ids = np.flatnonzero(np.random.default_rng(0).random(200_000) < 0.5)
    assert len(json.dumps(Dataset((200_000,)).without("data", ids).state())) < 1.1 * len(ids)


def run_of(dataset: Dataset, size: int, served: list[int]) -> tuple[Examples, list[int]]:
    grew: list[int] = []
    return Examples(dataset, size, served=lambda: served[0], grew=grew.append), grew


def test_a_run_grows_with_an_epoch_as_far_as_its_trainers_can_load_and_never_shrinks():
    served = [10]
    examples, grew = run_of(Dataset((10,)), 10, served)
    examples.follow(Dataset((10, 14, 20)))
    assert (examples.begin().size, grew) == (10, [])
    served[0] = 16
    assert (examples.present.size, examples.begin().size, grew) == (10, 16, [16])
    served[0] = 10  # one has not joined again
    assert examples.begin().size == 16
    served[0] = 1000
    assert (examples.begin().size, examples.present.size, grew) == (20, 20, [16, 20])


def test_what_is_deleted_is_gone_at_once_from_every_epoch_and_older_news_change_nothing():
    older = Dataset((10,)).grown("data", 12)
    newer = older.without("data", np.array([3, 11]))
    examples, _ = run_of(older, 10, [12])
    assert examples.follow(newer).tolist() == [3], "11 is none of its own yet"
    assert examples.follow(older).tolist() == examples.follow(newer).tolist() == []
    assert ids_in(examples.begin()) == set(range(12)) - {3, 11}
    assert ids_in(examples.below(10)) == set(range(10)) - {3}
    assert examples.below(10) is examples.below(10)


def test_an_epoch_is_resumed_with_the_examples_that_it_began_with(caplog):
    dataset = Dataset((10,)).grown("data", 12).without("data", np.array([3]))
    examples, grew = run_of(dataset, 10, [10])
    assert ids_in(examples.begin("2.12")) == set(range(12))
    assert grew == [12], "who resumes it has them"
    assert ids_in(examples.begin("1.10")) == set(range(10))
    with pytest.raises(ConfigError, match="population 'all' was never given by this service"):
        examples.begin("all")
    assert ids_in(examples.begin("9.99")) == set(range(12)) - {3}, "by what is known now"
    assert "examples 9.99, of which nothing is known" in caplog.text
