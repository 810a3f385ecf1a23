"""Merge a recipe in this process, one shard after the other, and print time, memory and bytes read as JSON.

    PYTHONPATH=tests/synthetic/plugin python tests/synthetic/measure_merge.py RECIPE OUT STORE

Prefect is not used, because its memory would be measured too. The memory is the peak resident memory during the merge
minus the resident memory before it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import torch

from eigenmerge.core.cache.result import merge_result
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.output.destination import prepare_destination
from eigenmerge.core.run import Run
from eigenmerge.core.steps.assemble import assemble
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.merge_shard import merge_shard
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.steps.shard_steps import map_in_turn
from eigenmerge.core.storage.store import Store


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(recipe_path: str, destination: str, store: str) -> None:
    started = time.monotonic()
    plan = make_plan(read_recipe(recipe_path))
    planned = time.monotonic()
    for operation in (torch.linalg.eigh, torch.linalg.svd, torch.linalg.qr):
        operation(torch.eye(256))  # loads the libraries before memory is measured
    target = prepare_destination(plan, destination, Store(destination), overwrite=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    run = Run(plan, Store(store))
    reports = map_in_turn(merge_shard, run.jobs(), stop=StopSignal())
    peak = resident("VmHWM") - before
    assembled = assemble(run, reports, target)
    seconds = time.monotonic() - started
    result = merge_result(
        plan, reports, destination=destination, bytes_through_reduce=assembled.bytes_through, seconds=seconds
    )
    facts = {
        "projected_peak_bytes": plan.peak_bytes,
        "measured_peak_bytes": peak,
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
