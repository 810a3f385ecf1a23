"""The tasks of the benchmark: eight real classification tasks, with other training items for each set of experts.

Five are those of `make demo`; three more come from the same packages. Test and validation items are the same for every
set, so the differences between merges are paired. A set draws its training items from what remains, by its seed.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
import data
from data import Archives, Task

MAX_TRAIN = 2000  # items of one expert
MAX_VALIDATION = 120
MAX_TEST = 300
COMPUTERS = re.compile(r"comp\.")


def load_real_tasks(archives: Archives, number: int, *, max_train: int = MAX_TRAIN) -> list[Task]:
    """Return the tasks with the training items of one set of experts.

    Parameters
    ----------
    number : number of the set; the sets draw from the same items, so two sets share some of them
    max_train : items of one expert, at most
    """
    with _sizes():
        tasks = [make(archives) for make in TASKS.values()]
    return [_divide(task, number, max_train) for task in tasks]


def computers(archives: Archives) -> Task:
    """Return the task of naming the newsgroup of a post, for five groups on computers."""
    train, test = (
        [i for i in data._table(archives, f"20newsgroups-{part}.tab", "Category", "Text") if COMPUTERS.match(i[1])]
        for part in ("train", "test")
    )
    return data._make_task("computers", train, test)


def rated(archives: Archives, *, name: str, file: str) -> Task:
    """Return the task of deciding whether a snippet is positive or negative."""
    return data._make_task(name, *data._hold_out(data._rated(archives, f"{file}_GroundTruth.txt")))


TASKS: dict[str, Callable[[Archives], Task]] = {
    "newsgroups": data.newsgroups,
    "computers": computers,
    "reuters": data.reuters,
    "election": data.election,
    "movies": data.movies,
    "tweets": data.tweets,
    "products": partial(rated, name="products", file="amazonReviewSnippets"),
    "editorials": partial(rated, name="editorials", file="nytEditorialSnippets"),
}


def _divide(task: Task, number: int, most: int) -> Task:
    """Return the task with the first of its training items for validation, and a draw of the others for training.

    A set has at most three quarters of the items, so that sets differ.
    """
    validation, rest = task.train[:MAX_VALIDATION], task.train[MAX_VALIDATION:]
    size = min(most, 3 * len(rest) // 4)
    drawn = random.Random(f"{task.name} {number}").sample(rest, size)
    return replace(task, train=tuple(drawn), validation=validation)


@contextmanager
def _sizes() -> Iterator[None]:
    """Let the demo's tasks have all their items for training, and the test items of this benchmark."""
    before = data.MAX_TRAIN, data.MAX_TEST
    data.MAX_TRAIN, data.MAX_TEST = 10**9, MAX_TEST
    try:
        yield
    finally:
        data.MAX_TRAIN, data.MAX_TEST = before
