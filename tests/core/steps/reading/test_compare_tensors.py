"""Difference and angle of tensors against the formulas: in blocks, for small and large angles, and for zeros."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.steps.reading import compare_tensors
from eigenmerge.core.steps.reading.compare_tensors import TensorDifference, compare_tensor, sum_groups
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader


def compare(folder: Path, a: torch.Tensor, b: torch.Tensor, base: torch.Tensor | None = None) -> TensorDifference:
    save_file({"a": a, "b": b} | ({} if base is None else {"base": base}), folder / "model.safetensors")
    found = list_model(str(folder)).tensors
    return compare_tensor("x", found["a"], found["b"], TensorReader(), found.get("base"))


@pytest.mark.parametrize("block", [10**6, 40, 1])
@pytest.mark.parametrize("degrees", [1e-4, 0.5, 60.0, 90.0, 179.9, 180.0])
def test_the_angle_of_two_rotated_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, degrees: float
) -> None:
    monkeypatch.setattr(compare_tensors, "BLOCK_ELEMENTS", block)
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    other = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    other -= (a * other).sum() / a.square().sum() * a
    other *= a.norm() / other.norm()
    turned = 3 * (math.cos(math.radians(degrees)) * a + math.sin(math.radians(degrees)) * other)
    row = compare(tmp_path, a, turned)
    assert row.status == "differs" and row.angle == pytest.approx(degrees, rel=1e-6, abs=1e-6)
    assert row.difference == pytest.approx(float((turned - a).norm() / a.norm()), rel=1e-12)


def test_changes_from_a_base(tmp_path: Path) -> None:
    base = torch.full((4, 4), 1000.0)
    change = torch.eye(4)
    assert (compare(tmp_path, base + change, base + 2 * change).angle or 0) < 0.1
    row = compare(tmp_path, base + change, base - change, base)
    assert (row.difference, row.angle) == (2.0, 180.0)


@pytest.mark.parametrize(
    ("a", "b", "status", "difference", "angle"),
    [
        (torch.zeros(3), torch.zeros(3), "equal", 0.0, None),
        (torch.zeros(3), torch.ones(3), "differs", math.inf, None),
        (torch.ones(3), torch.zeros(3), "differs", 1.0, None),
        (torch.ones(3), torch.ones(4), "other shape", None, None),
        (torch.ones(()), torch.full((), 3.0), "differs", 2.0, 0.0),
        (torch.zeros(0, 4), torch.zeros(0, 4), "equal", 0.0, None),
        (torch.ones(2), torch.tensor([1.0, math.nan]), "not finite", None, None),
        (torch.arange(3), torch.arange(3), "equal", 0.0, 0.0),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2), "equal", 0.0, 0.0),
    ],
)
def test_edges(
    tmp_path: Path, a: torch.Tensor, b: torch.Tensor, status: str, difference: float | None, angle: float | None
) -> None:
    row = compare(tmp_path, a, b)
    assert (row.status, row.difference, row.angle) == (status, difference, angle)


def test_groups_add_squares() -> None:
    rows = [
        TensorDifference("a", "differs", (1,), (1,), squares=(9.0, 9.0, 4.0)),
        TensorDifference("b", "differs", (1,), (1,), squares=(7.0, 7.0, 0.0)),
    ]
    groups = sum_groups({"first": rows, "second": rows[:1]})
    assert [(group.name, group.num_tensors, group.difference) for group in groups] == [
        ("second", 1, pytest.approx(2 / 3)),
        ("first", 2, 0.5),
    ]
