"""Curves: no point is lost, whatever their number, and a reader that knows some gets only the rest."""

from __future__ import annotations

import math

import pytest

from sampler_service.web.history import History
from sampler_service.web.recorder import pause


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


def test_a_slow_service_is_asked_less_often_and_not_forgotten():
    assert pause(0.05, 1.0) == pytest.approx(0.95)
    assert pause(0.3, 1.0) == pytest.approx(2.7)
    assert pause(20.0, 1.0) == 5.0, "it was starting a run"
