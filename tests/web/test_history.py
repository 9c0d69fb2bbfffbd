"""Curves: no point is lost, whatever their number, and a reader that knows some gets only the rest."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from sampler_service.web.history import History


def read(history: History, generation: int = -1, count: int = 0) -> dict:
    return history.since(generation, count)


def test_a_reader_gets_what_is_new_and_all_of_it_when_the_past_has_changed():
    history = History(most_points=8)
    for i in range(5):
        history.add({"time": i, "x": float(i)})
    first = read(history)
    assert (first["start"], first["columns"]["x"]) == (0, [0.0, 1.0, 2.0, 3.0, 4.0])
    history.add({"time": 5, "x": 5.0})
    rest = read(history, first["generation"], 5)
    assert (rest["start"], rest["columns"]["x"]) == (5, [5.0])
    assert read(history, first["generation"], 6)["columns"] == {}
    for i in range(6, 9):
        history.add({"time": i, "x": float(i)})
    anew = read(history, first["generation"], 6)
    assert (anew["start"], anew["generation"] != first["generation"]) == (0, True)


@pytest.mark.parametrize("points", [1, 7, 8, 9, 100, 1000])
def test_a_long_life_fits_and_its_mean_is_kept(points):
    history = History(most_points=8)
    for i in range(points):
        history.add({"time": float(i), "x": float(i % 2)})
    columns = read(history)["columns"]
    assert 1 <= len(columns["x"]) < 8
    assert columns["time"] == sorted(columns["time"])
    if points > 8:
        assert columns["x"] == pytest.approx([0.5] * len(columns["x"]))


def test_what_is_not_known_is_no_number_and_spoils_no_mean():
    history = History(most_points=4)
    for i, x in enumerate([math.nan, 2.0, math.nan, math.nan]):
        history.add({"time": float(i), "x": x})
    assert read(history)["columns"] == {"time": [1.0, 3.0], "x": [2.0, None]}


def test_a_reader_that_claims_more_than_there_is_gets_all():
    history = History()
    history.add({"time": 0.0, "x": 1.0})
    assert read(history, history.generation, 17)["start"] == 0
    assert read(history, history.generation, -1)["start"] == 0


def test_no_two_histories_are_taken_for_each_other():
    """A browser that slept over a restart of the page asks for the rest of curves that are gone."""
    old, new = History(), History()
    for i in range(3):
        old.add({"time": float(i), "x": 1.0})
    for i in range(5):
        new.add({"time": 10.0 + i, "x": 2.0})
    seen = read(old)
    assert read(new, seen["generation"], 3)["start"] == 0
    assert 0 <= seen["generation"] < 2**53, "JavaScript holds it exactly"


def test_the_tail_of_one_curve():
    history = History()
    for x in (1.0, math.nan, 3.0):
        history.add({"time": 0.0, "x": x})
    assert history.tail("x", 2) == [None, 3.0]
    assert history.tail("x", 60) == [1.0, None, 3.0]
    assert History().tail("x", 60) == []


def test_the_last_value_that_was_known():
    history = History()
    assert history.last("x") is None
    for x in (1.0, 2.0, math.nan):
        history.add({"time": 0.0, "x": x})
    assert history.last("x") == 2.0


def test_a_reader_does_not_see_new_points_under_the_old_generation(monkeypatch):
    history, found = History(most_points=8), []
    for i in range(7):
        history.add({"time": float(i)})
    known = read(history)["generation"]
    with ThreadPoolExecutor(1) as reader:

        def merging() -> int:  # neighbours have become one, and the generation is still that of before
            found.append(reader.submit(history.since, known, 3))
            wait(found, timeout=0.2)
            return 1

        monkeypatch.setattr("sampler_service.web.history._new_generation", merging)
        history.add({"time": 7.0})
        seen = found[0].result(30)
    assert (seen["generation"], seen["start"], len(seen["columns"]["time"])) == (1, 0, 4)
