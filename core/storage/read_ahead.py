"""An iterator that reads the next items in background threads while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], depth: int = 1) -> Iterator[Result]:
    """Yield `read(item)` for each item in order; up to `depth` further items are read in parallel in the background.

    Memory: `depth` results besides the one that the consumer holds. An exception of `read` is raised in place of its
    result. When the consumer stops early, pending reads are cancelled and running ones are waited for.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(depth, thread_name_prefix="read-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) > depth:
                    # No local variable: it would keep the previous result alive while the consumer works.
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
