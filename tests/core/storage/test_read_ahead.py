"""Reading ahead: order, depth, errors, and no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest

from eigenmerge.core.storage.read_ahead import read_ahead


@pytest.mark.parametrize("depth", [1, 3])
def test_results_come_in_order(depth: int) -> None:
    def read(number: int) -> int:
        time.sleep(0.002 * (number % 3))  # later reads may finish first
        return number * number

    assert list(read_ahead(read, range(20), depth)) == [number * number for number in range(20)]


def test_the_next_item_is_read_while_the_current_one_is_used() -> None:
    started = [threading.Event() for _ in range(3)]

    def read(number: int) -> int:
        started[number].set()
        return number

    results = read_ahead(read, range(3))
    assert next(results) == 0
    assert started[1].wait(5)
    time.sleep(0.05)
    assert not started[2].is_set(), "depth 1 reads one item ahead"
    assert list(results) == [1, 2]


def test_an_error_is_raised_in_place_of_its_result() -> None:
    results = read_ahead(lambda number: 1 // number, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_consumer_that_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    for _ in read_ahead(lambda number: number, range(100)):
        break
    results = read_ahead(lambda number: number, range(100))
    next(results)
    results.close()  # type: ignore[attr-defined]
    del results
    assert threading.active_count() == before
