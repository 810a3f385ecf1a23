"""Merge one layer in this process, and print what it took as JSON.

    python -m tests.benchmarks.peers.programs.one_layer eigenmerge|published ROWS COLUMNS

Five experts of independent normal numbers, float32, one thread, the published setting of CLIP ViT-B/32. The memory is
the peak of resident memory during the merge minus that before it, when the experts are in memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import torch

from eigenmerge import merge_task_vectors
from tests.resident_memory import reset_peak, resident

from .published import published_swudi

NUM_EXPERTS = 5
EXP_TIME, RANK_RATIO = 1300.0, 0.65


def merge_layer(contender: str, task_vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the merged delta, (M, K), of N task vectors (M, K)."""
    if contender == "published":
        return published_swudi(task_vectors, EXP_TIME, RANK_RATIO)
    assert contender == "eigenmerge"
    return merge_task_vectors(task_vectors, "swudi", exp_time=EXP_TIME, rank_ratio=RANK_RATIO)


def main(contender: str, rows: int, columns: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    task_vectors = [torch.randn(rows, columns, generator=generator).mul_(1e-3) for _ in range(NUM_EXPERTS)]
    merge_layer(contender, [one[:64, :64].contiguous() for one in task_vectors])  # loads modules and libraries
    reset_peak()
    before, started, cpu = resident("VmRSS"), time.monotonic(), time.process_time()
    merged = merge_layer(contender, task_vectors)
    figures = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - started}
    assert merged.isfinite().all()
    print(json.dumps({**figures, "memory": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
