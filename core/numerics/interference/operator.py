"""The sums over experts that define the problem of the WUDI family: interference operator C, target D and sum S.

    C = sum_i w_i v_i^T v_i,   D = sum_i w_i v_i (v_i^T v_i),   S = sum_i v_i,   w_i = 1 / ||v_i||_F^2

They can be stored: adding an expert later reads only that expert.

Shapes: M = out features (D1), K = in features (D2), R = rank of LoRA factors, N = experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CorruptObjectError, ShapeError
from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..linear_algebra import qr
from ..noise.combined import on_top
from ..noise.storage_noise import StorageNoise
from ..products.half_product import add_gram_lower, gram, mirror_lower_triangle
from ..products.matrix_product import add_product, product
from ..task_vectors import LowRank, TaskVectors, noise_of


@dataclass(frozen=True, slots=True)
class InterferenceOperator:
    """C, D and S of a set of experts.

    C : Tensor, (K, K), symmetric positive semi-definite, trace = number of experts that are not 0
    D : Tensor, (M, K)
    S : Tensor, (M, K)
    norms : Tensor, (N,), float64 on the CPU, ||v_i||_F in the order of addition
    noise : of v_i / ||v_i||_F on top of each other, from the rounding of storage; C is the Gram matrix of these
    """

    C: torch.Tensor
    D: torch.Tensor
    S: torch.Tensor
    norms: torch.Tensor
    noise: StorageNoise | None = None

    def __post_init__(self) -> None:
        rows, columns = self.S.shape
        if tuple(self.C.shape) != (columns, columns) or tuple(self.D.shape) != (rows, columns):
            raise ShapeError(
                f"interference operator: C has shape {tuple(self.C.shape)}, D {tuple(self.D.shape)};"
                f" expected {(columns, columns)} and {(rows, columns)} from the shape of S"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        rows, columns = self.S.shape
        return rows, columns

    @property
    def num_experts(self) -> int:
        """N, with experts that are 0."""
        return len(self.norms)

    @property
    def num_nonzero(self) -> int:
        """Number of experts that are not 0."""
        return int((self.norms > 0).sum())

    @staticmethod
    def empty(shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str) -> InterferenceOperator:
        """Return the sums of no experts, all 0."""
        rows, columns = shape
        return InterferenceOperator(
            C=torch.zeros((columns, columns), dtype=dtype, device=device),
            D=torch.zeros((rows, columns), dtype=dtype, device=device),
            S=torch.zeros((rows, columns), dtype=dtype, device=device),
            norms=torch.zeros(0, dtype=torch.float64),
        )

    def plus(
        self, task_vector: torch.Tensor | LowRank, *, in_place: bool = False, noise: StorageNoise | None = None
    ) -> InterferenceOperator:
        """Return the sums with one more expert.

        Cost: about 1.2 M K^2 + min(2 M K^2, 3.2 M^2 K) flops for a dense expert; M K and up to K^2 elements of work
        space.

        Parameters
        ----------
        task_vector : Tensor (M, K) or LowRank, dtype and device of the operator
        in_place : bool
            Add to the tensors of this operator, which must not be used afterwards.
        noise : of the task vector

        Raises
        ------
        ShapeError : the shape of the expert is another one
        """
        if tuple(task_vector.shape) != self.shape:
            raise ShapeError(
                f"task vector has shape {tuple(task_vector.shape)}; expected {self.shape}, the shape of the others"
            )
        C, D, S = (self.C, self.D, self.S) if in_place else (self.C.clone(), self.D.clone(), self.S.clone())
        if isinstance(task_vector, LowRank):
            norm = _add_low_rank(C, D, S, task_vector)
        else:
            norm = _add_dense(C, D, S, task_vector)
        norms = torch.cat([self.norms, torch.tensor([norm], dtype=torch.float64)])
        unit_noise = noise.times(1.0 / norm) if noise is not None and norm > 0 else None
        parts = [part for part in (self.noise, unit_noise) if part is not None]
        return InterferenceOperator(C, D, S, norms, on_top(parts))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors to store."""
        tensors = {"C": self.C, "D": self.D, "S": self.S, "norms": self.norms}
        if self.noise is not None:
            tensors |= {"noise_rows": self.noise.rows, "noise_columns": self.noise.columns}
        return tensors

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> InterferenceOperator:
        """Return the operator from the tensors of `to_tensors`.

        Raises
        ------
        CorruptObjectError : a tensor is missing
        ShapeError : the shapes do not fit
        """
        missing = sorted({"C", "D", "S", "norms"} - set(tensors))
        if missing:
            raise CorruptObjectError(f"stored interference operator lacks {', '.join(missing)}; recompute it")
        norms, noise = tensors["norms"].to("cpu", torch.float64), None
        if "noise_rows" in tensors and "noise_columns" in tensors:
            rows, columns = (
                tensors[f"noise_{name}"].to(tensors["C"].device, torch.float64) for name in ("rows", "columns")
            )
            noise = StorageNoise(rows, columns)
        return InterferenceOperator(tensors["C"], tensors["D"], tensors["S"], norms, noise)


def accumulate(task_vectors: TaskVectors) -> InterferenceOperator:
    """Return C, D and S of all experts, in one pass with one expert in memory.

    Cost: O(N M K^2) time; K^2 + 2 M K elements, and K^2 + 2 M K more while an expert is added.

    References
    ----------
    WUDI-Merging, arXiv:2503.08099; SWUDI, arXiv:2606.07289
    """
    operator: InterferenceOperator | None = None
    for index, task_vector in enumerate(task_vectors):
        if operator is None:
            like = task_vector.left if isinstance(task_vector, LowRank) else task_vector
            operator = InterferenceOperator.empty(task_vectors.shape, like.dtype, like.device)
        operator = operator.plus(task_vector, in_place=True, noise=noise_of(task_vectors, index))
    assert operator is not None, "task vectors contain at least one expert"
    return operator


def factor_orthonormal(task_vector: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q (M, R') with orthonormal columns and F (R', K) of v = Q F, R' = min(M, R).

    Then ||v q|| = ||F q|| for every q.
    """
    columns, triangle = qr(task_vector.left)
    return columns, product(triangle, task_vector.right)


def _add_dense(C: torch.Tensor, D: torch.Tensor, S: torch.Tensor, v: torch.Tensor) -> float:
    norm = frobenius_norm(v)
    if norm == 0.0:
        return 0.0
    # normalized before squaring: squares of small task vectors would underflow
    rows, columns = v.shape
    if 2 * rows < columns:
        add_gram_lower(C, v, norm)
        mirror_lower_triangle(C)
        add_product(D, gram(v.T, norm), v)
    else:
        squared = gram(v, norm)
        C.add_(squared)
        add_product(D, v, squared)
    S.add_(v)
    return norm


def _add_low_rank(C: torch.Tensor, D: torch.Tensor, S: torch.Tensor, v: LowRank) -> float:
    columns, factor = factor_orthonormal(v)
    norm = frobenius_norm(factor)
    if norm == 0.0:
        return 0.0
    unit = factor / norm
    add_gram_lower(C, unit)
    mirror_lower_triangle(C)
    add_product(D, columns, product(product(unit, unit.T), unit), alpha=norm)
    add_product(S, columns, factor)
    return norm
