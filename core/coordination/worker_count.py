"""How many shards are computed at the same time."""

from __future__ import annotations

import os

from ..errors import RecipeError
from ..planning.plan import Plan


def choose_worker_count(plan: Plan, requested: int | None, max_memory: int | None, device: str) -> int:
    """Return the number of shards to compute at the same time, at least 1.

    The default is one per core, or one per GPU for "cuda". Each shard uses one thread: an eigendecomposition is bound
    by memory bandwidth, so two layers with one thread each finish before two layers in sequence with two threads each,
    and the order of floating point sums does not depend on the number of workers.

    Parameters
    ----------
    requested : number from the recipe or the command line; None chooses by cores or GPUs
    max_memory : bytes that all workers together may use; limits the number by the plan's peak memory per worker

    Raises
    ------
    RecipeError : fewer than one worker is requested
    """
    if requested is not None and requested < 1:
        raise RecipeError(f"--workers {requested}: expected at least 1")
    count = _default_count(device) if requested is None else requested
    if max_memory is not None and plan.peak_bytes > 0:
        count = min(count, max_memory // plan.peak_bytes)
    return max(1, min(count, len(plan.shards)))


def available_cores() -> int:
    """Return the number of cores that this process may use: a container's limit, not the size of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_count(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    return 1 if device.startswith("cuda") else available_cores()
