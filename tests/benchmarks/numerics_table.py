"""Relative errors of the spectral methods against float64, by route and dtype: the tables of docs/numerics.md.

    python tests/benchmarks/numerics_table.py
    python tests/benchmarks/numerics_table.py --write docs/numerics.md

Random experts, two draws; the largest error counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.svd.svc import apply_svc
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

BEGIN, END = "<!-- tables: written by tests/benchmarks/numerics_table.py -->", "<!-- end of tables -->"
EXPERTS, RANK, DRAWS = 4, 8, 2
BASE_SIZE, DELTA_SHARE = 0.02, 0.05  # root mean square of the base's entries; norm of a task vector relative to it
Vectors = list[torch.Tensor | LowRank]

SETTINGS: Sequence[tuple[str, str, Mapping[str, Any]]] = [
    ("swudi_a", "swudi_a", {}),
    ("swudi, t=300, r=0.85", "swudi", {"exp_time": 300.0, "rank_ratio": 0.85}),
    ("swudi, t=1300, r=0.65", "swudi", {"exp_time": 1300.0, "rank_ratio": 0.65}),
    ("swudi_soft, t=300", "swudi_soft", {}),
    ("swudi, t=1e6", "swudi", {"exp_time": 1e6}),
    ("swudi, tikhonov 0.01", "swudi", {"filter": "tikhonov"}),
    ("swudi, tikhonov 1e-6", "swudi", {"filter": "tikhonov", "tikhonov_alpha": 1e-6}),
    ("swudi_a, gavish_donoho", "swudi_a", {"rank_rule": "gavish_donoho"}),
    ("wudi_pinv", "wudi_pinv", {}),
    ("wudi (iterative)", "wudi", {}),
    ("optmerge (iterative)", "optmerge", {}),
    ("optmerge, closed form", "optmerge", {"solver": "closed_form"}),
    ("iso_c", "iso_c", {}),
    ("iso_cts", "iso_cts", {}),
    ("tsv_m", "tsv_m", {}),
    ("dc_merge, density 0.05", "dc_merge", {"density": 0.05}),
    ("subspace_boosting", "subspace_boosting", {}),
    ("star", "star", {}),
    ("cart", "cart", {}),
    ("knots", "knots", {}),
    ("ace", "ace", {}),
]
# Adam, sign election and weights of each input treat entries one by one: another basis is another problem.
BY_ENTRY = ("wudi (iterative)", "optmerge (iterative)", "knots", "ace")
SVC_ROW = "task_arithmetic 0.3 with svc"
INPUTS = {
    "Dense experts, 96 x 128 (gram route; SVD of the whole matrix)": (96, False),
    "Dense experts with few rows, 20 x 128 (row space)": (20, False),
    "Adapters of rank 8, 96 x 128 (LoRA factors)": (96, True),
}
COLUMNS = 128


def draw(rows: int, low_rank: bool, seed: int) -> tuple[torch.Tensor, Vectors]:
    """Return a base and task vectors in float64. Singular values fall as 1/k; experts share a part of their rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = BASE_SIZE * normal(rows, COLUMNS)
    order = RANK if low_rank else min(rows, COLUMNS)
    shared = normal(order, COLUMNS)
    found: Vectors = []
    for _ in range(EXPERTS):
        left = torch.linalg.qr(normal(rows, order))[0] * torch.arange(1, order + 1, dtype=torch.float64) ** -1.0
        right = torch.linalg.qr((normal(order, COLUMNS) + shared).T)[0].T
        size = float(DELTA_SHARE * base.norm() / (left @ right).norm())
        found.append(LowRank(left * size, right) if low_rank else size * left @ right)
    return base, found


def stored_in_bf16(base: torch.Tensor, vectors: Vectors) -> Vectors:
    """Return the task vectors of experts, or the factors of adapters, that are stored in bfloat16."""
    rounded: Vectors = []
    kept = base.bfloat16().double()
    for vector in vectors:
        if isinstance(vector, LowRank):
            rounded.append(LowRank(vector.left.bfloat16().double(), vector.right.bfloat16().double()))
        else:
            rounded.append((kept + vector).bfloat16().double() - kept)
    return rounded


def to_dtype(vectors: Vectors, dtype: torch.dtype) -> Vectors:
    return [one.to("cpu", dtype) if isinstance(one, LowRank) else one.to(dtype) for one in vectors]


def rotated(vectors: Vectors, basis: torch.Tensor) -> Vectors:
    """Return the task vectors in another orthonormal basis of the columns."""
    return [LowRank(one.left, one.right @ basis) if isinstance(one, LowRank) else one @ basis for one in vectors]


def merge_with(name: str, given: Mapping[str, Any]) -> Callable[[Vectors], torch.Tensor]:
    method = get_method(name)
    assert isinstance(method, SpectralMethod)
    parameters = method.Parameters(**given)

    def merge(vectors: Vectors) -> torch.Tensor:
        spectrum = method.decompose(InMemoryTaskVectors(vectors), parameters)
        return apply_factors(spectrum, method.factors(spectrum, parameters)).double()

    return merge


def calibrate(vectors: Vectors) -> torch.Tensor:
    if all(isinstance(one, LowRank) for one in vectors):
        factors = [one for one in vectors if isinstance(one, LowRank)]
        delta = LowRank(torch.cat([0.3 * one.left for one in factors], 1), torch.cat([one.right for one in factors]))
        return apply_svc(delta, InMemoryTaskVectors(vectors)).double()
    dense = [one for one in vectors if isinstance(one, torch.Tensor)]
    return apply_svc(0.3 * torch.stack(dense).sum(0), InMemoryTaskVectors(vectors)).double()


def other_basis(seed: int, permuted: bool) -> torch.Tensor:
    """Return an orthogonal (K, K): random, or a permutation of the inputs."""
    generator = torch.Generator().manual_seed(99 + seed)
    if permuted:
        return torch.eye(COLUMNS, dtype=torch.float64)[torch.randperm(COLUMNS, generator=generator)]
    return torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, dtype=torch.float64, generator=generator))[0]


def errors(merge: Callable[[Vectors], torch.Tensor], rows: int, low_rank: bool, permuted: bool) -> list[float]:
    """Return the largest relative errors: float32, float64, float32 on bf16 experts, and what bf16 storage changes."""
    worst = [0.0] * 4
    for seed in range(DRAWS):
        base, vectors = draw(rows, low_rank, seed)
        stored = stored_in_bf16(base, vectors)
        reference, of_stored = merge(vectors), merge(stored)
        basis = other_basis(seed, permuted)
        pairs = [
            (merge(to_dtype(vectors, torch.float32)), merge(to_dtype(to_dtype(vectors, torch.float32), torch.float64))),
            (merge(rotated(vectors, basis)) @ basis.T, reference),
            (merge(to_dtype(stored, torch.float32)), merge(to_dtype(to_dtype(stored, torch.float32), torch.float64))),
            (of_stored, reference),
        ]
        worst = [max(old, float((a - b).norm() / b.norm())) for old, (a, b) in zip(worst, pairs, strict=True)]
    return worst


def table(rows: int, low_rank: bool) -> list[str]:
    lines = [
        "| method | float32 | float64 | float32, bf16 experts | bf16 storage | planned in |",
        "|---|---|---|---|---|---|",
    ]
    cases = [(title, merge_with(name, given), needs(name, given)) for title, name, given in SETTINGS]
    for title, merge, wide in [*cases, (SVC_ROW, calibrate, False)]:
        found = errors(merge, rows, low_rank, title in BY_ENTRY)
        cells = " | ".join(f"{error:.0e}" for error in found)
        lines.append(f"| {title} | {cells} | {'float64' if wide else 'float32'} |")
    return lines


def needs(name: str, given: Mapping[str, Any]) -> bool:
    method = get_method(name)
    assert isinstance(method, SpectralMethod)
    return method.needs_float64(method.Parameters(**given))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", type=Path, help="the page whose tables are replaced")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    lines: list[str] = []
    for title, (rows, low_rank) in INPUTS.items():
        lines += [f"### {title}", "", *table(rows, low_rank), ""]
    today = datetime.now(UTC).date().isoformat()
    lines.append(f"One thread on 2 cores of a shared virtual machine, torch {torch.__version__}, {today}.")
    text = "\n".join(lines)
    if given.write is None:
        print(text)
        return
    page = given.write.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    given.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
