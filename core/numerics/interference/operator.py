"""The sums that define the WUDI family's problem: interference operator C, target D and sum S, one expert at a time.

    C = sum_i w_i v_i^T v_i,   D = sum_i w_i v_i (v_i^T v_i),   S = sum_i v_i,   w_i = 1 / ||v_i||_F^2

Shapes: M = out features (D1), K = in features (D2), R = rank of LoRA factors, N = experts.
All three are sums over experts, so they may be kept: a later expert costs one pass over that expert alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CorruptObjectError, ShapeError
from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..task_vectors import LowRank, TaskVectors

_MIRROR_BLOCK = 1024  # rows copied at a time when C is made symmetric: bounds the work space


@dataclass(frozen=True, slots=True)
class InterferenceOperator:
    """C, D and S of the experts seen so far.

    C : Tensor, (K, K), symmetric positive semi-definite, trace = number of non-zero experts
    D : Tensor, (M, K)
    S : Tensor, (M, K)
    norms : Tensor, (N,), float64 on the CPU, ||v_i||_F in the order they came; 0 for an expert that does nothing
    """

    C: torch.Tensor
    D: torch.Tensor
    S: torch.Tensor
    norms: torch.Tensor

    def __post_init__(self) -> None:
        rows, columns = self.S.shape
        if tuple(self.C.shape) != (columns, columns) or tuple(self.D.shape) != (rows, columns):
            raise ShapeError(
                f"interference operator: C is {tuple(self.C.shape)}, D is {tuple(self.D.shape)};"
                f" expected {(columns, columns)} and {(rows, columns)} to go with S"
            )

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.S.shape
        return rows, columns

    @property
    def num_experts(self) -> int:
        return len(self.norms)

    @property
    def num_nonzero(self) -> int:
        return int((self.norms > 0).sum())

    @staticmethod
    def empty(shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str) -> InterferenceOperator:
        """The operator of no experts."""
        rows, columns = shape
        return InterferenceOperator(
            C=torch.zeros((columns, columns), dtype=dtype, device=device),
            D=torch.zeros((rows, columns), dtype=dtype, device=device),
            S=torch.zeros((rows, columns), dtype=dtype, device=device),
            norms=torch.zeros(0, dtype=torch.float64),
        )

    def plus(self, task_vector: torch.Tensor | LowRank, *, in_place: bool = False) -> InterferenceOperator:
        """The operator with one more expert.

        Cost: 2 M K^2 + min(2 M K^2, 4 M^2 K) flops for a dense expert; work space of M K and up to K^2 elements.

        Parameters
        ----------
        task_vector : Tensor (M, K) or LowRank, dtype and device of the operator
        in_place : bool
            Adds into this operator's tensors, which must not be used afterwards.

        Raises
        ------
        ShapeError : the expert has another shape
        """
        if tuple(task_vector.shape) != self.shape:
            raise ShapeError(f"task vector has shape {tuple(task_vector.shape)}, the operator {self.shape}")
        C, D, S = (self.C, self.D, self.S) if in_place else (self.C.clone(), self.D.clone(), self.S.clone())
        if isinstance(task_vector, LowRank):
            norm = _add_low_rank(C, D, S, task_vector)
        else:
            norm = _add_dense(C, D, S, task_vector)
        _mirror_lower_triangle(C)
        norms = torch.cat([self.norms, torch.tensor([norm], dtype=torch.float64)])
        return InterferenceOperator(C, D, S, norms)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What has to be stored to add an expert later."""
        return {"C": self.C, "D": self.D, "S": self.S, "norms": self.norms}

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> InterferenceOperator:
        """The inverse of `to_tensors`.

        Raises
        ------
        CorruptObjectError : a tensor is missing
        ShapeError : they do not fit each other
        """
        missing = sorted({"C", "D", "S", "norms"} - set(tensors))
        if missing:
            raise CorruptObjectError(f"stored interference operator lacks {', '.join(missing)}; recompute it")
        return InterferenceOperator(tensors["C"], tensors["D"], tensors["S"], tensors["norms"].to("cpu", torch.float64))


def accumulate(task_vectors: TaskVectors) -> InterferenceOperator:
    """C, D and S of all experts in one pass; at most one expert is held.

    Cost: O(N M K^2) time; K^2 + 2 M K elements kept, K^2 + 2 M K more while an expert is added.

    References
    ----------
    WUDI-Merging, arXiv:2503.08099; SWUDI, arXiv:2606.07289
    """
    operator: InterferenceOperator | None = None
    for task_vector in task_vectors:
        if operator is None:
            like = task_vector.left if isinstance(task_vector, LowRank) else task_vector
            operator = InterferenceOperator.empty(task_vectors.shape, like.dtype, like.device)
        operator = operator.plus(task_vector, in_place=True)
    assert operator is not None, "task vectors hold at least one expert"
    return operator


def factor_orthonormal(task_vector: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """v = Q F with orthonormal columns in Q (M, R') and F (R', K), R' = min(M, R): ||v q|| = ||F q|| for every q."""
    columns, triangle = torch.linalg.qr(task_vector.left)
    return columns, triangle @ task_vector.right


def _add_dense(C: torch.Tensor, D: torch.Tensor, S: torch.Tensor, v: torch.Tensor) -> float:
    norm = frobenius_norm(v)
    if norm == 0.0:
        return 0.0
    # Normalised first: with w_i as a factor on unscaled squares, small task vectors would underflow.
    unit = v / norm
    rows, columns = v.shape
    if 2 * rows < columns:
        C.addmm_(unit.T, unit)
        D.addmm_(unit @ unit.T, unit, alpha=norm)
    else:
        gram = unit.T @ unit
        C += gram
        D.addmm_(unit, gram, alpha=norm)
    S += v
    return norm


def _add_low_rank(C: torch.Tensor, D: torch.Tensor, S: torch.Tensor, v: LowRank) -> float:
    columns, factor = factor_orthonormal(v)
    norm = frobenius_norm(factor)
    if norm == 0.0:
        return 0.0
    unit = factor / norm
    C.addmm_(unit.T, unit)
    D.addmm_(columns, (unit @ unit.T) @ unit, alpha=norm)
    S.addmm_(columns, factor)
    return norm


def _mirror_lower_triangle(C: torch.Tensor) -> None:
    """Make C exactly symmetric, as eigh reads it: a matrix product X^T X need not be, to the last bit."""
    for start in range(0, C.shape[0], _MIRROR_BLOCK):
        stop = min(start + _MIRROR_BLOCK, C.shape[0])
        C[:start, start:stop] = C[start:stop, :start].T
        diagonal = C[start:stop, start:stop]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)
