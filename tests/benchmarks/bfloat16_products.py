"""Time C = v^T v by bfloat16 units against float32, on one thread.

    python tests/benchmarks/bfloat16_products.py [--columns 2048 --rows 4096]

A delta of bfloat16 weights is hi + lo, two numbers of bfloat16, so that
C = hi^T hi + hi^T lo + (hi^T lo)^T + lo^T lo, whose products of two entries are exact in float32. torch multiplies
float32 matrices by bfloat16 units with `torch.backends.mkldnn.matmul.fp32_precision`; a product of bfloat16 matrices
with a float32 result does not exist on the CPU. CPU seconds, the least of five runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from eigenmerge.core.numerics.products.half_product import gram


def seconds(action: Callable[[], object]) -> float:
    """Return the least CPU seconds of five runs, after one that is not counted."""
    action()
    found: list[float] = []
    for _ in range(5):
        begin = time.process_time()
        action()
        found.append(time.process_time() - begin)
    return min(found)


def split_gram(hi: torch.Tensor, lo: torch.Tensor) -> torch.Tensor:
    """Return C from two halves of symmetric products and one whole product."""
    mixed = hi.T @ lo
    return gram(hi) + mixed + mixed.T + gram(lo)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=4096)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    base, expert = (torch.randn(sizes.rows, sizes.columns).bfloat16() for _ in range(2))
    delta = expert.float() - base.float()
    hi = delta.bfloat16().float()
    lo = (delta - hi).bfloat16().float()
    exact = delta.double().T @ delta.double()
    print(f"hi + lo is the delta: {torch.equal(hi + lo, delta)}; torch {torch.__version__}")
    for name, action in (
        ("float32, whole product", lambda: delta.T @ delta),
        ("float32, half product", lambda: gram(delta)),
        ("hi and lo, bfloat16 units", lambda: split_gram(hi, lo)),
    ):
        matmul: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 - unknown to type checkers
        matmul.fp32_precision = "bf16" if "units" in name else "ieee"
        error = ((action().double() - exact).norm() / exact.norm()).item()
        print(f"{name:28} {seconds(action):6.3f} CPU s, error {error:.1e}")


if __name__ == "__main__":
    main()
