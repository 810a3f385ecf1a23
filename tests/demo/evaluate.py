"""Measure the accuracy of a checkpoint on held-out items, and the share of the experts' gain that a merge keeps."""

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
    """The test items of a task that a checkpoint classifies correctly: 1.0 or 0.0 for each, (items,)."""

    right: Tensor

    @property
    def accuracy(self) -> float:
        return self.right.mean().item()

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))


@dataclass(frozen=True, slots=True)
class KeptGain:
    """The share of the experts' gain in accuracy that a merge keeps, averaged over tasks."""

    share: float
    standard_error: float


def evaluate(
    pool: Executor, workshop: Workshop, tasks: Iterable[Task], checkpoint_of: Callable[[Task], Path]
) -> dict[str, Answers]:
    """Evaluate the checkpoint that `checkpoint_of` returns for each task, in parallel in the pool."""
    jobs = {task.name: pool.submit(_find_right_answers, workshop, checkpoint_of(task), task) for task in tasks}
    return {name: Answers(torch.tensor(job.result())) for name, job in jobs.items()}


def _find_right_answers(workshop: Workshop, checkpoint: Path, task: Task) -> list[float]:
    """Return a list, because tensors are sent between processes by shared memory, which is small in containers."""
    label = torch.tensor([label for _, label in task.test])
    embedded = Encoder.load(checkpoint).embed_all([text for text, _ in task.test])
    return ((embedded @ workshop.head(task).T).argmax(-1) == label).float().tolist()


def share_kept(base: Mapping[str, Answers], experts: Mapping[str, Answers], merged: Mapping[str, Answers]) -> KeptGain:
    """Return (merged - base) / (expert - base), averaged over the tasks whose expert is better than the base.

    The standard error is that of the choice of test items, to first order. Base, expert and merge classify the same
    items, so it follows from the variance over items of (merged - base) - share (expert - base). It is not reliable
    where the gain of an expert is close to its own standard error, and it does not include the variance of training.
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
        return KeptGain(math.nan, math.nan)
    return KeptGain(sum(shares) / len(shares), math.sqrt(sum(variances)) / len(shares))
