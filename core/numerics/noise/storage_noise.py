"""Rounding of stored weights as noise of known size in task vectors.

Model: expert = round(base + change), and the base is what is stored. A fine-tuning starts from the stored base and the
merged delta is added to it, so the base has no error: it is the definition of zero, and no error is common to all
experts. Of an expert, each entry that differs from the base has an error that is uniform over one spacing (ulp) of its
dtype at that entry, so its variance is ulp^2 / 12, and the errors of different entries and of different experts are
independent. (At a power of two the spacing below is half of that above: ulp^2 / 16. That is every fourth number of
float8 E5M2 and every 128th of bfloat16.) An entry equal to the base has no error in the task vector: it is exactly 0.
What rounding removed there is lost and adds nothing. An expert that was tuned lightly in bfloat16 has many such
entries.

The model is an approximation where changes are about one spacing: an entry that was rounded away from the base has an
error of up to half a spacing with a known sign. Its mean square is then up to 1/4 instead of 1/12 of ulp^2.

Variances add: over experts (each times its squared weight) and over entries. Their sums over rows and columns are all
that is needed, and they can be stored.

Shapes: M = out features, K = in features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from ..lazy_torch import torch
from .level import expected_norm, noise_level

#: What is done with directions that are rounding of storage: they are left out, and others shrunk too; or nothing.
NoiseHandling = Literal["cut", "shrink", "ignore"]

_BLOCK = 1 << 18  # entries whose spacings are computed at a time

# Bits of the mantissa without the leading one, and exponent of the smallest normal number.
_FORMATS = {
    "float32": (23, -126),
    "bfloat16": (7, -126),
    "float16": (10, -14),
    "float8_e4m3fn": (3, -6),
    "float8_e5m2": (2, -14),
}
_LARGEST_EXPONENT = 127
# Relative error of the model that a whole tensor of noise is allowed.
_MODEL_ERROR = 0.1


@dataclass(frozen=True, slots=True)
class StorageNoise:
    """Noise of one matrix: independent errors of mean 0 whose variances are known.

    rows : Tensor, (M,), float64, sum of the variances of each row
    columns : Tensor, (K,), float64, sum of the variances of each column
    shrinks : singular values above the level are shrunk instead of kept
    """

    rows: torch.Tensor
    columns: torch.Tensor
    shrinks: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        return len(self.rows), len(self.columns)

    @property
    def energy(self) -> float:
        """Expected squared Frobenius norm."""
        return float(self.rows.sum())

    @property
    def norm(self) -> float:
        """Expected largest singular value; s (sqrt M + sqrt K) where all variances are s^2."""
        return expected_norm(self.rows, self.columns)

    @property
    def level(self) -> float:
        """Singular value at or below which a direction is noise: `norm` with the margin of its fluctuation."""
        return noise_level(self.rows, self.columns)

    @property
    def deviation(self) -> float:
        """Standard deviation of the entries of a matrix of equal variances with the same `norm`."""
        return self.norm / max(math.sqrt(len(self.rows)) + math.sqrt(len(self.columns)), 1e-300)

    def floor(self, values: torch.Tensor) -> float:
        """Return `level` where all that is at or below it is noise, else 0.

        Experts of full rank have weak directions under the level, and a cut would remove these too. Their energy is
        then larger than the noise explains: (1 - R/M)(1 - R/K) of its expected energy is outside the R directions above
        the level.

        Parameters
        ----------
        values : Tensor, all singular values of the matrix with the noise
        """
        level = self.level
        squares = values.double().square()
        below = values <= level
        num_above = int((~below).sum())
        rows, columns = self.shape
        expected = self.energy * max(0.0, 1.0 - num_above / rows) * max(0.0, 1.0 - num_above / columns)
        tail = float(squares[below].sum())
        return level if tail <= allowed_energy(expected, rows * columns) else 0.0

    @property
    def transposed(self) -> StorageNoise:
        """The noise of the transposed matrix, (K, M)."""
        return StorageNoise(self.columns, self.rows, self.shrinks)

    def times(self, factor: float) -> StorageNoise:
        """Return the noise of the matrix times a factor."""
        return StorageNoise(self.rows * factor**2, self.columns * factor**2, self.shrinks)

    def plus(self, other: StorageNoise | None) -> StorageNoise:
        """Return the noise of the sum of two matrices with independent noise; None has none."""
        if other is None:
            return self
        return StorageNoise(self.rows + other.rows, self.columns + other.columns, self.shrinks or other.shrinks)

    def projected(self, rows: int, columns: int) -> StorageNoise:
        """Return the noise of L X R^T, for L and R with that many orthonormal rows that do not depend on the noise."""
        variance = self.deviation**2
        return StorageNoise(
            self.rows.new_full((rows,), columns * variance), self.columns.new_full((columns,), rows * variance),
            self.shrinks,
        )  # fmt: skip


def rounds(dtype: torch.dtype) -> bool:
    """Return whether storage in this dtype loses more than float32, in which weights are trained."""
    return _name(dtype) in _FORMATS and dtype != torch.float32


def spacing(values: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Return the distance of neighboring numbers of `dtype` at each value, in the dtype of `values`.

    Parameters
    ----------
    values : Tensor, as stored, times `scale`
    dtype : in which they are stored
    scale : Tensor, of the same shape, optional
        What multiplies the stored numbers

    Raises
    ------
    KeyError : not a floating point dtype of 8 to 32 bits
    """
    bits, smallest = _FORMATS[_name(dtype)]
    numbers = values if scale is None else values / scale
    exponents = torch.frexp(numbers).exponent - 1
    exponents = exponents.masked_fill(numbers == 0, smallest).clamp(min=smallest)
    found = torch.ldexp(torch.ones_like(numbers), exponents - bits)
    return found if scale is None else found * scale.abs()


def storage_noise(
    values: torch.Tensor,
    task_vector: torch.Tensor,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    *,
    shrinks: bool = False,
) -> StorageNoise:
    """Return the noise of a task vector, by the model of this file.

    Cost: one pass; blocks of a few MB.

    Parameters
    ----------
    values : Tensor, (M, K), of the expert
    task_vector : Tensor, (M, K), expert - base; entries that are 0 have no noise
    dtype : in which the expert is stored
    scale : Tensor, (M, K), optional, as in `spacing`
    shrinks : as in `StorageNoise`
    """
    rows, columns = task_vector.shape
    row_sums = torch.zeros(rows, dtype=torch.float64, device=values.device)
    column_sums = torch.zeros(columns, dtype=torch.float64, device=values.device)
    height = max(1, _BLOCK // max(1, columns))
    for start in range(0, rows, height):
        span = slice(start, start + height)
        part = values[span]
        own_scale = None if scale is None else scale[span].to(part.device, part.dtype)
        variance = _variances(part, dtype, own_scale).masked_fill(task_vector[span] == 0, 0.0)
        row_sums[span] = variance.sum(dim=1, dtype=torch.float64)
        column_sums += variance.sum(dim=0, dtype=torch.float64)
    return StorageNoise(row_sums, column_sums, shrinks)


def _variances(values: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None) -> torch.Tensor:
    """Return ulp^2 / 12 of each entry, ulp^2 / 16 of powers of two, in the dtype of `values`."""
    bits, smallest = _FORMATS[_name(dtype)]
    mantissas, exponents = torch.frexp(values if scale is None else values / scale)
    # of the spacing at 2^(smallest + i), by i
    powers = torch.arange(smallest, _LARGEST_EXPONENT + 1, dtype=torch.float64, device=values.device) - bits
    table = (4.0**powers / 12.0).to(values.dtype)
    found = table[(exponents - (smallest + 1)).clamp_(0, len(table) - 1).long()]
    found = torch.where((mantissas.abs() == 0.5) & (exponents - 1 > smallest), 0.75 * found, found)
    found = torch.where(mantissas == 0, table[0], found)
    return found if scale is None else found * scale.square()


def allowed_energy(expected: float, num_entries: int) -> float:
    """Return the largest energy that noise of an expected energy has: 10% for the model, and its fluctuation."""
    # (0.8 / n)^(1/2) is the relative deviation of a sum of n squares of uniform errors
    return expected * (1.0 + _MODEL_ERROR + 5.0 * math.sqrt(0.8 / max(1, num_entries)))


def is_noise(task_vector: torch.Tensor, noise: StorageNoise) -> bool:
    """Return whether a task vector is no more than its storage noise: its energy, and then its largest singular value.

    Cost: one pass; an SVD where the energy is that of the noise.

    Parameters
    ----------
    task_vector : Tensor, (M, K)
    noise : of this task vector
    """
    if noise.energy == 0.0:
        return not bool(task_vector.any())
    if float(task_vector.double().square().sum()) > allowed_energy(noise.energy, task_vector.numel()):
        return False
    largest = cast("float", torch.linalg.matrix_norm(task_vector.double(), 2).item())  # pyright: ignore[reportUnknownMemberType]
    return largest <= noise.level


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
