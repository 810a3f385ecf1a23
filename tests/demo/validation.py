"""The evaluator of the demo's sweep: accuracy on validation items, by task and on average.

eigenmerge sweep RECIPE --evaluate validation:accuracies      with this folder on PYTHONPATH
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from data import Task, fetch, load_tasks
from encoder import Encoder
from experts import Workshop

from eigenmerge import Candidate

#: Environment variable with the work folder of the demo.
WORK = "EIGENMERGE_DEMO"


def accuracies(candidate: Candidate) -> dict[str, float]:
    """Return the accuracy on each task's validation items, and their mean."""
    tasks, workshop = _tasks(), Workshop(_work())
    encoder = Encoder.load(candidate.directory())
    found: dict[str, float] = {}
    for number, task in enumerate(tasks):
        label = torch.tensor([label for _, label in task.validation])
        answers = (encoder.embed_all([text for text, _ in task.validation]) @ workshop.head(task).T).argmax(-1)
        found[task.name] = (answers == label).float().mean().item()
        candidate.report(number, sum(found.values()) / len(found))
    return {"mean": sum(found.values()) / len(found), **found}


@cache
def _tasks() -> list[Task]:
    return load_tasks(fetch(_work() / "packages"))


def _work() -> Path:
    return Path(os.environ.get(WORK, ".demo"))
