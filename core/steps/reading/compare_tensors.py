"""Compare the tensors of two models: relative difference and angle of each, in blocks of rows.

    relative difference = ||b - a||_F / ||a||_F
    angle = arccos(<a, b> / (||a|| ||b||))
          = 2 arcsin(sqrt((||b - a||^2 - (||a|| - ||b||)^2) / (4 ||a|| ||b||)))

The second form, which is computed, does not cancel for small angles. With a base, a and b are the changes from it. Sums
are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ...listing import TensorSource
from ...storage.checkpoints.tensor_reader import TensorReader

BLOCK_ELEMENTS = 4 * 2**20  # of one tensor in memory at a time: 32 MiB in float64

Status = Literal["equal", "differs", "other shape", "not finite", "only in A", "only in B"]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """The comparison of one tensor.

    name : in A, or in B where only B has it
    shape_a, shape_b : None where the model does not have it
    difference : ||b - a|| / ||a||; infinite where a is 0 and b is not; None where they cannot be compared
    angle : degrees, 0 to 180; None where one of them is 0
    squares : ||a||^2, ||b||^2 and ||b - a||^2, which add up over tensors
    """

    name: str
    status: Status
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    dtype_a: str | None = None
    dtype_b: str | None = None
    difference: float | None = None
    angle: float | None = None
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON data; an infinite difference is null."""
        data = asdict(self)
        data["difference"] = self.difference if self.difference is None or math.isfinite(self.difference) else None
        return data


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """The comparison of several tensors together: of a layer, or of the whole model."""

    name: str
    num_tensors: int
    difference: float
    angle: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON data; an infinite difference is null."""
        return asdict(self) | {"difference": self.difference if math.isfinite(self.difference) else None}


def compare_tensor(
    name: str, a: TensorSource, b: TensorSource, reader: TensorReader, base: TensorSource | None = None
) -> TensorDifference:
    """Compare two stored tensors.

    Cost: one read of both; 24 bytes for each of BLOCK_ELEMENTS elements in memory, or for a row if that is longer.

    Parameters
    ----------
    base : of their shape: compare what was added to it

    Raises
    ------
    CheckpointError, StoreError : a file changed or cannot be read
    """
    if a.shape != b.shape or (base is not None and base.shape != a.shape):
        return TensorDifference(name, "other shape", a.shape, b.shape, a.dtype, b.dtype)
    sums = torch.zeros(3, dtype=torch.float64)
    for rows in _blocks(a.shape):
        one, other = (reader.read(source, rows).double() for source in (a, b))
        if base is not None:
            origin = reader.read(base, rows).double()
            one, other = one - origin, other - origin
        sums += torch.stack([one.square().sum(), other.square().sum(), (other - one).square().sum()])
    squares = (float(sums[0]), float(sums[1]), float(sums[2]))
    if not all(map(math.isfinite, squares)):
        return TensorDifference(name, "not finite", a.shape, b.shape, a.dtype, b.dtype)
    return TensorDifference(
        name,
        "equal" if squares[2] == 0 else "differs",
        a.shape,
        b.shape,
        a.dtype,
        b.dtype,
        relative_difference(squares),
        angle_degrees(squares),
        squares,
    )


def relative_difference(squares: tuple[float, float, float]) -> float:
    """Return ||b - a|| / ||a||; 0 where both are 0."""
    norm, _, difference = squares
    if difference == 0:
        return 0.0
    return math.sqrt(difference / norm) if norm > 0 else math.inf


def angle_degrees(squares: tuple[float, float, float]) -> float | None:
    """Return the angle between a and b, None where one of them is 0."""
    one, other = math.sqrt(squares[0]), math.sqrt(squares[1])
    if one == 0 or other == 0:
        return None
    sine = (squares[2] - (one - other) ** 2) / (4 * one * other)
    return math.degrees(2 * math.asin(math.sqrt(min(1.0, max(0.0, sine)))))


def sum_groups(groups: Mapping[str, Sequence[TensorDifference]]) -> list[GroupDifference]:
    """Return the difference and angle of the tensors of each group together, the largest difference first."""
    found: list[GroupDifference] = []
    for name, members in groups.items():
        squares = (
            math.fsum(row.squares[0] for row in members),
            math.fsum(row.squares[1] for row in members),
            math.fsum(row.squares[2] for row in members),
        )
        found.append(GroupDifference(name, len(members), relative_difference(squares), angle_degrees(squares)))
    return sorted(found, key=lambda group: -group.difference)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int] | None]:
    """Yield ranges of rows of at most BLOCK_ELEMENTS elements, or of one row; None for a small or scalar tensor."""
    if math.prod(shape) <= BLOCK_ELEMENTS or not shape:
        yield None
        return
    rows = max(1, BLOCK_ELEMENTS // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])
