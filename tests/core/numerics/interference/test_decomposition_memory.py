"""Peak memory of decompositions, measured in a separate process, against the projection."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Memory that the allocator and BLAS hold besides the matrices: packed operands, freed blocks that are not returned.
ALLOCATOR_BYTES = 48 * 2**20

PROGRAM = """
import json, sys
import torch
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

torch.set_num_threads(1)
name, rows, columns, count, rank = sys.argv[1], *map(int, sys.argv[2:])

def peak_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

class Stream:  # one expert at a time, as from a checkpoint
    shape, num_experts, all_low_rank = (rows, columns), count, rank > 0
    max_ranks = [rank or min(rows, columns)] * count
    def __iter__(self):
        for seed in range(count):
            draw = torch.Generator().manual_seed(seed)
            if rank:
                yield LowRank(torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw))
            else:
                yield torch.randn(rows, columns, generator=draw)

method = get_method(name)
parameters = method.Parameters(**({"iterations": 3} if name == "wudi" else {}))
small = InMemoryTaskVectors(torch.randn(3, 100, 100).unbind())
spectrum = method.decompose(small, parameters)
apply_factors(spectrum, method.factors(spectrum, parameters))  # loads code pages, starts thread pools
open("/proc/self/clear_refs", "w").write("5")  # reset the peak: importing torch needs more memory than it keeps
del spectrum
before = peak_bytes()
spectrum = method.decompose(Stream(), parameters)
apply_factors(spectrum, method.factors(spectrum, parameters))
peak = peak_bytes() - before
projected = method.peak_elements(Stream.shape, Stream.max_ranks, Stream.all_low_rank) * 4
print(json.dumps({"peak": peak, "projected": projected, "route": spectrum.info["route"]}))
"""


def measure(*arguments: object) -> dict[str, float | str]:
    command = [sys.executable, "-c", PROGRAM, *(str(argument) for argument in arguments)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(finished.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "rows", "columns", "count", "rank", "route"),
    [
        ("swudi_a", 6144, 640, 4, 0, "gram"),
        ("swudi_a", 384, 2304, 3, 0, "row_space"),
        ("swudi_a", 4096, 4096, 8, 16, "row_space"),
        ("wudi", 3072, 256, 3, 0, "iteration"),
    ],
)
def test_peak_stays_below_the_projection(name: str, rows: int, columns: int, count: int, rank: int, route: str) -> None:
    found = measure(name, rows, columns, count, rank)
    assert found["route"] == route
    assert isinstance(found["peak"], (int, float)) and isinstance(found["projected"], (int, float))
    assert found["peak"] <= found["projected"] + ALLOCATOR_BYTES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_does_not_grow_with_the_number_of_experts() -> None:
    few, many = (measure("swudi_a", 4096, 512, count, 0) for count in (2, 20))
    one_expert = 4096 * 512 * 4
    assert isinstance(few["peak"], (int, float)) and isinstance(many["peak"], (int, float))
    assert many["peak"] < few["peak"] + 3 * one_expert  # 18 experts more
