"""How many held-out items a checkpoint gets right, and how much of the experts' gain a merge keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Task
from encoder import Encoder
from experts import Workshop
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answers:
    """Which of a task's test items a checkpoint got right, in the task's order: 1.0 or 0.0 each, (items,)."""

    right: Tensor

    @property
    def accuracy(self) -> float:
        return self.right.mean().item()

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))


@dataclass(frozen=True, slots=True)
class Kept:
    """The share of the experts' gain over the base that a merge keeps, averaged over tasks."""

    share: float
    standard_error: float


def evaluate(
    pool: Executor, workshop: Workshop, tasks: Iterable[Task], checkpoint_of: Callable[[Task], Path]
) -> dict[str, Answers]:
    """Judge a checkpoint on every task, or each task's own checkpoint on it, side by side in the pool."""
    jobs = {task.name: pool.submit(_judge, workshop, checkpoint_of(task), task) for task in tasks}
    return {name: Answers(torch.tensor(job.result())) for name, job in jobs.items()}


def _judge(workshop: Workshop, checkpoint: Path, task: Task) -> list[float]:
    """A list, because a tensor would cross between processes through shared memory, which containers keep small."""
    label = torch.tensor([label for _, label in task.test])
    embedded = Encoder.load(checkpoint).embed_all([text for text, _ in task.test])
    return ((embedded @ workshop.head(task).T).argmax(-1) == label).float().tolist()


def share_kept(base: Mapping[str, Answers], experts: Mapping[str, Answers], merged: Mapping[str, Answers]) -> Kept:
    """(merged - base) / (expert - base), averaged over the tasks whose expert gained anything.

    The error is that of the test items alone, to first order: base, expert and merge answered the same items, so what
    counts is the spread over items of (merged - base) - share (expert - base). It means little where an expert gained
    hardly more than its own standard error, and it does not hold that the experts could have been trained otherwise.
    """
    shares, variances = [], []
    for name in base:
        gain = experts[name].right - base[name].right
        if gain.mean() > 0:
            kept = merged[name].right - base[name].right
            share = kept.mean() / gain.mean()
            shares.append(share.item())
            variances.append(((kept - share * gain).var() / len(gain) / gain.mean() ** 2).item())
    if not shares:
        return Kept(math.nan, math.nan)
    return Kept(sum(shares) / len(shares), math.sqrt(sum(variances)) / len(shares))
