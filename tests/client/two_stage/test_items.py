"""Rows and devices of whatever a DataLoader yields."""

from __future__ import annotations

from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sampler_client.errors import ConfigError
from sampler_client.pytorch.two_stage.items import take_rows, to_device

INDEX = torch.tensor([3, 1])


class Pair(NamedTuple):
    image: torch.Tensor
    name: list[str]


def test_every_form_of_an_item_is_cut_alike():
    names = ["a", "b", "c", "d"]
    item = {
        "image": torch.arange(8).reshape(4, 2),
        "pair": Pair(torch.arange(4), names),
        "list": [np.arange(4), (torch.arange(4), "meta")],
        "ragged": [torch.zeros(n) for n in range(4)],
        "scale": torch.tensor(2.0),
        "nothing": None,
    }
    taken = take_rows(item, INDEX, 4)
    assert taken["image"].tolist() == [[6, 7], [2, 3]]
    assert isinstance(taken["pair"], Pair)
    assert (taken["pair"].image.tolist(), taken["pair"].name) == ([3, 1], ["d", "b"])
    assert taken["list"][0].tolist() == [3, 1]
    assert (taken["list"][1][0].tolist(), taken["list"][1][1]) == ([3, 1], "meta")
    assert [len(row) for row in taken["ragged"]] == [3, 1]
    assert (float(taken["scale"]), taken["nothing"]) == (2.0, None)


def test_two_candidates_in_a_pair_of_tensors_are_rows_of_each():
    x, y = take_rows((torch.zeros(2, 5), torch.tensor([7, 8])), torch.tensor([1]), 2)
    assert (tuple(x.shape), y.tolist()) == ((1, 5), [8])


def test_as_many_fields_as_candidates_are_fields_where_their_arrays_are_batches():
    x, y, name = take_rows((torch.arange(6).reshape(3, 2), torch.arange(3), "meta"), torch.tensor([2]), 3)
    assert (x.tolist(), y.tolist(), name) == ([[4, 5]], [2], "meta")
    assert take_rows(["a", "b", "c"], torch.tensor([2]), 3) == ["c"]
    assert [len(row) for row in take_rows([torch.zeros(3), torch.zeros(5), torch.zeros(3)], INDEX[1:], 3)] == [5]


def test_every_form_of_an_item_goes_to_the_device_alike():
    item = {
        "pair": Pair(torch.zeros(4), ["a"]),
        "encoding": UserDict(ids=torch.zeros(2), more=[torch.zeros(1), None]),
        "array": np.zeros(2),
        "number": 3,
    }
    moved = to_device(item, torch.device("meta"))
    assert isinstance(moved["pair"], Pair) and isinstance(moved["encoding"], UserDict)
    on_device = (moved["pair"].image, moved["encoding"]["ids"], moved["encoding"]["more"][0])
    assert {tensor.device.type for tensor in on_device} == {"meta"}
    assert (moved["pair"].name, moved["number"]) == (["a"], 3) and moved["array"] is item["array"]
    assert to_device(item, None) is item


@pytest.mark.parametrize("wrong", [torch.zeros(5, 4), np.zeros((3,))], ids=["tensor", "array"])
def test_an_array_without_the_batch_dimension_is_named(wrong):
    with pytest.raises(ConfigError, match=r"shape \((5, 4|3,)\) in a batch of 4 candidates"):
        take_rows({"x": wrong}, INDEX, 4)


def test_an_item_of_unknown_type_is_named():
    with pytest.raises(ConfigError, match="cannot cut a object"):
        take_rows((torch.zeros(4), object()), INDEX, 4)
