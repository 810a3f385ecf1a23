"""Threads of torch: one while shards are merged, and the caller's number afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from eigenmerge.core.coordination.threads import one_thread, use_one_thread


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_from_now_on() -> None:
    use_one_thread()
    use_one_thread()
    assert torch.get_num_threads() == 1


def test_the_callers_number_is_restored() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_the_callers_number_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="of the merge"), one_thread():
        raise ValueError("of the merge")
    assert torch.get_num_threads() == 3
