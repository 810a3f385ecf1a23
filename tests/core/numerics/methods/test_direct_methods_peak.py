"""Measured peak memory of direct methods against their projection, on a tensor of 40 MB."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.method import DirectMethod
from eigenmerge.core.numerics.registry import get_method

# Larger than 32 MiB: the C library returns such memory to the system at once, so the resident set is the memory in use.
NUM_ELEMENTS = 10_000_000
CLEAR = Path("/proc/self/clear_refs")


def status(key: str) -> int:
    """Return the bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


class FromBfloat16:
    """Inputs from bfloat16 checkpoints, converted on request."""

    name, seed = "w", 0

    def __init__(self, stored: torch.Tensor, experts: list[torch.Tensor]) -> None:
        self.base = stored.float()
        self._stored = experts

    @property
    def num_experts(self) -> int:
        return len(self._stored)

    def experts(self) -> Iterator[torch.Tensor]:
        for expert in self._stored:
            yield expert.float()

    def task_vectors(self) -> Iterator[torch.Tensor]:
        for expert in self._stored:
            yield expert.float() - self.base

    def is_base(self, index: int) -> bool:
        return False


@pytest.fixture(scope="module")
def stored() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2500, NUM_ELEMENTS // 2500, generator=generator) * 0.02
    return [
        base.bfloat16(),
        *((base + torch.randn(base.shape, generator=generator) * 1e-3).bfloat16() for _ in range(5)),
    ]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_ties", "sce", "model_stock", "multislerp"])
def test_peak_is_within_the_projection_for_any_number_of_experts(
    name: str, count: int, stored: list[torch.Tensor]
) -> None:
    try:
        CLEAR.write_text("5")  # resets the peak, Linux only
    except OSError as error:
        pytest.skip(f"cannot reset the peak resident set: {error}")
    method: Any = get_method(name)
    assert isinstance(method, DirectMethod)
    each = {"density": 0.3} if "density" in method.Expert.model_fields else {}
    parameters = {"select_topk": 0.5} if name == "sce" else {}
    gc.collect()
    before = status("VmRSS")
    inputs = FromBfloat16(stored[0], stored[1 : count + 1])
    CLEAR.write_text("5")
    merged = method.merge(inputs, method.Parameters(**parameters), [method.Expert(**each)] * count)
    measured = status("VmHWM") - before
    projected = method.peak_elements(NUM_ELEMENTS, count) * 4
    assert merged.numel() == NUM_ELEMENTS
    assert measured <= projected + 16_000_000  # blocks, and the interpreter
    assert measured > 2 * NUM_ELEMENTS * 4  # the measurement works
