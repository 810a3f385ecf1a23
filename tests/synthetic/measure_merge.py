"""Merge a recipe in this process, one shard after the other, and print time, memory and bytes read as JSON.

    PYTHONPATH=tests/synthetic/plugin python tests/synthetic/measure_merge.py RECIPE OUT STORE [DEVICE]

Prefect is not used, because its memory would be measured too. The memory is the peak resident memory during the merge
minus the resident memory before it; on a GPU, the peak of allocated memory. The same recipe merges a tiny model first,
which loads modules and libraries.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from eigenmerge.core.output.destination import prepare_destination
from eigenmerge.core.run import Run
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.merge_run import run_plan
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.storage.store import Store


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def merge_tiny(recipe: str, device: str) -> None:
    """Merge by the same recipe, with a model of the synthetic file system whose tensors have some thousand numbers."""
    tiny = re.sub(r"synthetic://[^/]+/", "synthetic://llama-tiny.blocks-0-0.bare/", recipe)
    with TemporaryDirectory() as folder:
        plan = make_plan(read_recipe(tiny), device=device)
        target = prepare_destination(plan, f"{folder}/out", Store(f"{folder}/out"), overwrite=False)
        run_plan(Run(plan, Store(f"{folder}/store")), target)


def main(recipe_path: str, destination: str, store: str, device: str = "cpu") -> None:
    started = time.monotonic()
    plan = make_plan(read_recipe(recipe_path), device=device)
    planned = time.monotonic()
    for operation in (torch.linalg.eigh, torch.linalg.svd, torch.linalg.qr):
        operation(torch.eye(256, device=device))  # loads the libraries before memory is measured
    merge_tiny(Path(recipe_path).read_text(), device)
    target = prepare_destination(plan, destination, Store(destination), overwrite=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    result = run_plan(Run(plan, Store(store)), target)
    peak = resident("VmHWM") - before
    facts = {
        "projected_peak_bytes": plan.peak_bytes,
        "measured_peak_bytes": peak if device == "cpu" else torch.cuda.max_memory_allocated(),
        "plan_seconds": planned - started,
        "seconds": result.seconds,
        "bytes_read": result.bytes_read,
        "projected_bytes_read": plan.bytes_read,
        "num_tensors": plan.num_tensors,
        "decompositions": result.decompositions_computed,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
