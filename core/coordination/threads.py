"""The number of threads that torch uses: one per shard, so that results do not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


def use_one_thread() -> None:
    """Make torch compute with one thread in this process.

    Several threads add up in another order than one, so the bytes of a result would depend on the number of threads.
    One thread per shard is also the fastest use of the cores while there are at least as many shards as cores.
    """
    import torch

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Use one thread within the block, and restore the number of the caller afterwards."""
    import torch

    before = torch.get_num_threads()
    use_one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(before)
