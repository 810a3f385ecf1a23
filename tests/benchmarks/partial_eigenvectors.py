"""Seconds of all eigenvectors of a symmetric matrix against all eigenvalues and the leading eigenvectors only.

    pip install scipy
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/partial_eigenvectors.py --order 2048 --kept 128

The numbers are in docs/decisions/026-top-spectra.md. scipy is no dependency of Eigenmerge; the script needs it alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the processor time of the fastest run."""
    found: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        found.append(time.process_time() - start)
    return min(found)


def partial(matrix: Any, kept: int) -> tuple[Any, Any]:
    """Return all eigenvalues, and the eigenvectors of the largest ones, from one reduction to tridiagonal form."""
    linalg, lapack, numpy = import_module("scipy.linalg"), import_module("scipy.linalg.lapack"), import_module("numpy")
    order = len(matrix)
    reduced, diagonal, off, tau, _ = lapack.ssytrd(matrix, lower=1, lwork=64 * order)
    values = linalg.eigh_tridiagonal(diagonal, off, eigvals_only=True, lapack_driver="sterf")
    chosen = (order - kept, order - 1)
    _, vectors = linalg.eigh_tridiagonal(diagonal, off, select="i", select_range=chosen, lapack_driver="stemr")
    # the reflectors of ssytrd act on the rows from the second on
    rest, _, _ = lapack.sormqr("L", "N", reduced[1:, :-1], tau, numpy.asfortranarray(vectors[1:]), 64 * order)
    return values, numpy.concatenate([vectors[:1], rest])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--order", type=int, default=2048)
    parser.add_argument("--kept", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = torch.randn(given.order, given.order) * torch.arange(1, given.order + 1) ** -0.7
    matrix = rows.T @ rows
    array, linalg = matrix.numpy(), import_module("scipy.linalg")
    values, vectors = partial(array, given.kept)
    error = float(abs(array @ vectors - vectors * values[-given.kept :]).max()) / float(values[-1])
    kept = (given.order - given.kept, given.order - 1)
    times = {
        "torch.linalg.eigh, all vectors": seconds(lambda: torch.linalg.eigh(matrix), given.repeats),
        "torch.linalg.eigvalsh, no vectors": seconds(lambda: torch.linalg.eigvalsh(matrix), given.repeats),
        "scipy eigh(driver='evr'), kept vectors, their values": seconds(
            lambda: linalg.eigh(array, driver="evr", subset_by_index=kept), given.repeats
        ),
        "sytrd, sterf, stemr, ormtr: kept vectors, all values": seconds(
            lambda: partial(array, given.kept), given.repeats
        ),
    }
    whole = next(iter(times.values()))
    print(f"order {given.order}, {given.kept} vectors; residual of the last {error:.1e}; torch {torch.__version__}")
    for name, found in times.items():
        print(f"{name}: {found:.2f} s, {found / whole:.2f} of the first")


if __name__ == "__main__":
    main()
