"""Read the next while the current one is computed with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], depth: int = 1) -> Iterator[Result]:
    """`map(read, items)` in order, with up to `depth` results being read before they are asked for, at the same time.

    Memory: besides what the consumer holds, `depth` results. An error of `read` is raised where its result would have
    come. When the consumer stops early, what has not begun is dropped, and what has begun is waited for.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(depth, thread_name_prefix="read-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > depth:
                    # Not kept in a variable: that would hold a second result while the consumer works.
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
