"""An iterator that is a step ahead of its reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sampler_service.rpc.ahead import read_ahead


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    second_is_made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    coming = read_ahead(items())
    assert next(coming) == 1
    assert second_is_made.wait(5)
    assert list(coming) == [2]


def test_items_come_in_order_and_no_more_than_one_is_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    for number, item in enumerate(read_ahead(items())):
        assert item == number
        assert len(made) <= number + 2


def test_what_making_an_item_raises_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second")

    coming = read_ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="no second"):
        next(coming)


def test_a_reader_that_leaves_leaves_no_thread() -> None:
    before = threading.active_count()
    coming = read_ahead(iter(range(10)))
    assert next(coming) == 0
    assert threading.active_count() == before + 1
    coming.close()
    assert threading.active_count() == before
