"""Functions of torch.linalg with types: torch declares them without."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from ..errors import NonFiniteError
from .lazy_torch import torch


@contextmanager
def overflow_refused(name: str) -> Generator[None, None, None]:
    """Translate torch's failure to decompose a matrix to NonFiniteError.

    The inputs are finite, so a matrix with Inf or NaN has overflowed: a sum of values, or of their squares.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "_LinAlgError":  # torch does not declare torch.linalg.LinAlgError
            raise
        raise NonFiniteError(f"{name}: {TOO_LARGE} (torch: {' '.join(str(error).split())[:150]})") from None


#: What to do where finite inputs give a result that is not.
TOO_LARGE = (
    "its values are too large for the arithmetic, sums of them or of their squares overflow; set arithmetic: float64,"
    " correct or remove the expert with these values, or keep the base's tensor with a rule"
)


def qr(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q (M, R) and R (R, K) of a matrix (M, K), R = min(M, K)."""
    return cast("tuple[torch.Tensor, torch.Tensor]", torch.linalg.qr(matrix))  # pyright: ignore[reportUnknownMemberType]


def svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U (M, R), descending singular values (R,) and V^T (R, K) of a matrix (M, K), R = min(M, K)."""
    found = torch.linalg.svd(matrix, full_matrices=False)  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return cast("tuple[torch.Tensor, torch.Tensor, torch.Tensor]", found)


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending eigenvalues (K,) and eigenvectors as columns (K, K) of a symmetric matrix."""
    return cast("tuple[torch.Tensor, torch.Tensor]", torch.linalg.eigh(matrix))  # pyright: ignore[reportUnknownMemberType]


def solve_on_right(matrix: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """Return X with X matrix = product."""
    return cast("torch.Tensor", torch.linalg.solve(matrix, product, left=False))  # pyright: ignore[reportUnknownMemberType]


def vector_norms(tensor: torch.Tensor, dim: int, *, keepdim: bool = False) -> torch.Tensor:
    """Return the Euclidean norms along one dimension."""
    found = torch.linalg.vector_norm(tensor, dim=dim, keepdim=keepdim)  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return cast("torch.Tensor", found)


def frobenius(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> float:
    """Return the Frobenius norm of a tensor of any shape, computed in `dtype`; None for that of the tensor."""
    return float(torch.linalg.vector_norm(tensor, dtype=dtype))  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]
