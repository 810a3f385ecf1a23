"""Random probes of task vectors: the interference of each expert and the overlap of two, without a second pass.

WUDI's loss of expert i at the merged delta theta is ||(theta - v_i) v_i^T||_F^2 / ||v_i||_F^2. With a matrix Omega
(P, M) of random signs, y_i = Omega v_i and z_i = v_i y_i^T,

    ||(theta - v_i) v_i^T||_F^2 = E ||theta y_i^T - z_i||_F^2 / P,    <v_i, v_j> = E <y_i, y_j> / P,

so y_i and z_i, recorded while the experts are decomposed, are enough for every theta. The standard deviation relative
to the value is about sqrt(2 / (P r)) for an expert of effective rank r; the loss at theta and that at 0 have the same
probes, so their ratio is more exact.

Shapes: M = out features (D1), K = in features (D2), P = probes of an expert, N = experts.

References
----------
WUDI, arXiv:2503.08099, eq. 7; Hutchinson 1990, doi:10.1080/03610919008812866; the subspace alignment ratio: Iso,
arXiv:2502.04959, eq. 4
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from ...errors import CorruptObjectError
from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..task_vectors import LowRank, TaskVectors, WrappedTaskVectors

_MOST_PROBES = 16
#: Rows of all probes together: they need at most 128 (M + K) elements. More experts than this are not measured.
_MOST_ROWS = 128
_DIGITS = 4  # significant digits of what is recorded


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured of the experts of one tensor, and of its merged delta; sums over its matrices.

    Experts are in the order in which they were added, their task vectors with their weights.

    delta : ||theta||^2
    squares : ||v_i||^2
    before, after : WUDI's loss of each expert at 0, which is the base model, and at the merged delta; empty where only
        norms and cosines are known
    along : <v_i, theta>
    inner : <v_i, v_j> for i < j, row by row
    within : ||v_i Q||^2 with the kept directions Q over the inputs; empty where there are none
    """

    delta: float
    squares: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    along: tuple[float, ...]
    inner: tuple[float, ...]
    within: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes of all experts of one matrix, on the CPU.

    across : Tensor (N, P, K), bfloat16, y_i: its rounding is far below the error of an estimate
    through : Tensor (N, P, M), bfloat16, z_i^T of the rounded y_i
    norms : Tensor (N,), float64, ||v_i||_F
    """

    across: torch.Tensor
    through: torch.Tensor
    norms: torch.Tensor

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors to store."""
        return {"across": self.across, "through": self.through, "norms": self.norms}

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, int], num_experts: int) -> Probes:
        """Return probes from the tensors of `to_tensors`, for a matrix of that shape.

        Raises
        ------
        CorruptObjectError : they are those of another matrix
        """
        rows, columns = shape
        expected = {
            "across": (num_experts, num_probes(num_experts), columns),
            "through": (num_experts, num_probes(num_experts), rows),
            "norms": (num_experts,),
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise CorruptObjectError(f"stored probes have shapes {found}; expected {expected}")
        return Probes(tensors["across"], tensors["through"], tensors["norms"])


def num_probes(num_experts: int) -> int:
    """Return P; 0 where there are too many experts to be measured."""
    return min(_MOST_PROBES, _MOST_ROWS // max(1, num_experts))


class Recorder:
    """Collects the probes of experts, given one after the other as matrices or factors of one shape."""

    def __init__(self, shape: tuple[int, int], num_experts: int) -> None:
        rows, columns = shape
        count = num_probes(num_experts)
        self._shape, self._num_experts = shape, num_experts
        # Allocated once: small tensors that stay between large ones that are freed make the heap of glibc before 2.38
        # grow by each large one, because its aligned allocations do not fit into freed blocks of their size.
        self._across = torch.empty((num_experts, count, columns), dtype=torch.bfloat16)
        self._through = torch.empty((num_experts, count, rows), dtype=torch.bfloat16)
        self._norms: list[float] = []

    def add(self, vector: torch.Tensor | LowRank, base: torch.Tensor | None = None) -> None:
        """Add an expert: its task vector, or its weight and the base, of which the difference is not formed."""
        signs = _signs(num_probes(self._num_experts), self._shape[0])
        if isinstance(vector, LowRank):
            like = vector.left
            across = _stored((signs.to(like) @ vector.left) @ vector.right)
            through = (across @ vector.right.T) @ vector.left.T
            norm = _norm_of_factors(vector)
        else:
            signs = signs.to(vector)
            across = signs @ vector
            across = _stored(across if base is None else across - signs @ base)
            through = across @ vector.T
            through = through if base is None else through - across @ base.T
            norm = _norm_of_difference(vector, base)
        index = len(self._norms)
        self._across[index].copy_(across.bfloat16().cpu())
        self._through[index].copy_(through.bfloat16().cpu())
        self._norms.append(norm)

    def probes(self) -> Probes | None:
        """Return the probes; None while experts are missing."""
        if len(self._norms) != self._num_experts:
            return None
        norms = torch.tensor(self._norms, dtype=torch.float64)
        return Probes(self._across, self._through, norms)


class RecordedTaskVectors(WrappedTaskVectors):
    """Task vectors whose probes are known after the first whole pass over them."""

    def __init__(self, vectors: TaskVectors) -> None:
        super().__init__(vectors)
        self.probes: Probes | None = None

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        if self.probes is not None:
            yield from self._vectors
            return
        recorder = Recorder(self.shape, self.num_experts)
        for vector in self._vectors:
            recorder.add(vector)
            yield vector
            del vector  # a bound name would keep this expert in memory beside the next one
        self.probes = recorder.probes()


def measure(probes: Probes, delta: torch.Tensor | LowRank, base: torch.Tensor | None = None) -> Measures:
    """Return the measures of the experts at a merged delta, (M, K), without `within`.

    Cost: 4 N P M K flops.

    Parameters
    ----------
    base : where `delta` is the merged weight, whose difference from the base is not formed
    """
    num_experts, count, _ = probes.across.shape
    like = delta.left if isinstance(delta, LowRank) else delta
    signs = _signs(count, probes.through.shape[2]).to(like)
    if isinstance(delta, LowRank):
        own = (signs @ delta.left) @ delta.right
        size = _norm_of_factors(delta)
    else:
        own = signs @ delta if base is None else signs @ delta - signs @ base
        size = _norm_of_difference(delta, base)
    norms = probes.norms
    weight = torch.where(norms > 0, 1.0 / norms.square(), 0.0) / count
    losses = torch.zeros((2, num_experts), dtype=torch.float64)
    for index in range(num_experts):  # one at a time: a table of tokens has many rows
        through = probes.through[index].double()
        response = _respond(probes.across[index].to(like), delta, base).cpu().double()
        losses[0, index] = through.square().sum()
        losses[1, index] = response.sub_(through).square_().sum()
    losses *= weight
    flat = probes.across.double().reshape(num_experts, -1)
    cosines = _cosines(torch.cat([flat, own.cpu().double().reshape(1, -1)]))
    lengths = torch.cat([norms, torch.tensor([size], dtype=torch.float64)])
    inner = cosines * lengths.unsqueeze(1) * lengths
    upper = torch.triu_indices(num_experts, num_experts, 1)
    return Measures(
        delta=size**2,
        squares=numbers(norms.square()),
        before=numbers(losses[0]),
        after=numbers(losses[1]),
        along=numbers(inner[-1, :-1]),
        inner=numbers(inner[upper[0], upper[1]]),
    )


def measured_faster_as_matrix(factors: LowRank, num_experts: int) -> bool:
    """Return whether `measure` costs less at the product of the factors, (M, K), than at the factors.

    With Q = N P probes and R directions: 2 (M + K) R (R + Q) flops at the factors, 2 M K Q at the product.
    """
    rows, columns = factors.shape
    count = num_experts * num_probes(num_experts)
    return (rows + columns) * factors.rank * (factors.rank + count) > rows * columns * count


def _respond(across: torch.Tensor, delta: torch.Tensor | LowRank, base: torch.Tensor | None) -> torch.Tensor:
    """Return (theta y^T)^T, (P, M), of the probes of one expert."""
    if isinstance(delta, LowRank):
        return (across @ delta.right.T) @ delta.left.T
    response = across @ delta.T
    return response if base is None else response.sub_(across @ base.T)


def energy_within(probes: Probes, directions: torch.Tensor) -> tuple[float, ...]:
    """Return ||v_i Q||^2 of each expert, with orthonormal directions over the inputs, (R, K), as the rows of Q^T.

    Where these are right singular vectors of the merged delta, its root relative to ||v_i|| is the subspace alignment
    ratio over the inputs.
    """
    num_experts, _, columns = probes.across.shape
    projected = probes.across.reshape(-1, columns).to(directions) @ directions.T
    kept = projected.cpu().double().reshape(num_experts, -1).square().sum(dim=1)
    total = probes.across.double().square().sum(dim=(1, 2))
    return numbers(torch.where(total > 0, (kept / total).clamp(max=1.0), 0.0) * probes.norms.square())


def add_measures(found: Sequence[Measures]) -> Measures:
    """Return the measures of a tensor that consists of several matrices."""

    def total(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(math.fsum(column) for column in zip(*rows, strict=True))

    return Measures(
        delta=math.fsum(one.delta for one in found),
        squares=total([one.squares for one in found]),
        before=total([one.before for one in found]),
        after=total([one.after for one in found]),
        along=total([one.along for one in found]),
        inner=total([one.inner for one in found]),
        within=total([one.within for one in found]) if all(one.within for one in found) else (),
    )


def rounded(measures: Measures | None) -> Measures | None:
    """Return the measures with four significant digits, because they are estimates.

    None where nothing was measured, or products of large entries overflowed the arithmetic.
    """
    if measures is None:
        return None
    rows = _lists(measures)
    if not all(math.isfinite(value) for row in ((measures.delta,), *rows) for value in row):
        return None

    def shorten(value: float) -> float:
        return float(f"{value:.{_DIGITS}g}")

    return Measures(shorten(measures.delta), *(tuple(map(shorten, row)) for row in rows))


def _lists(measures: Measures) -> tuple[tuple[float, ...], ...]:
    """Return all fields after `delta`, in their order."""
    return (measures.squares, measures.before, measures.after, measures.along, measures.inner, measures.within)


@lru_cache(maxsize=16)
def _signs(count: int, rows: int) -> torch.Tensor:
    """Return Omega, (P, M), of random signs that depend on its shape only."""
    generator = torch.Generator().manual_seed(1_000_003 * count + rows)
    return torch.randint(0, 2, (count, rows), generator=generator, dtype=torch.int8).mul_(2).sub_(1)


def _stored(rows: torch.Tensor) -> torch.Tensor:
    """Return rows rounded as they are stored, in their own dtype."""
    return rows.bfloat16().to(rows.dtype)


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    norms = rows.square().sum(dim=1).sqrt()
    unit = rows / norms.where(norms > 0, 1.0).unsqueeze(1)
    return unit @ unit.T


def _norm_of_factors(factors: LowRank) -> float:
    left, right = factors.left, factors.right
    return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).double().sum())))


def _norm_of_difference(weight: torch.Tensor, base: torch.Tensor | None) -> float:
    if base is None:
        return frobenius_norm(weight)
    rows = range(0, len(weight), _BLOCK_ROWS)
    parts = ((weight[start : start + _BLOCK_ROWS], base[start : start + _BLOCK_ROWS]) for start in rows)
    return math.hypot(*(frobenius_norm(part - own) for part, own in parts))


_BLOCK_ROWS = 256


def numbers(values: torch.Tensor) -> tuple[float, ...]:
    """Return the entries of a tensor, (X,), in order."""
    return tuple(cast("list[float]", values.tolist()))  # pyright: ignore[reportUnknownMemberType]
