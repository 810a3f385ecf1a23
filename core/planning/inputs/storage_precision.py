"""Which stored dtypes hold all values of another: what rounding an expert's storage can have added."""

from __future__ import annotations

from ...formats.dtypes import FLOAT8_DTYPES
from ...listing import TensorSource
from ...views import has_factors, stored_tensors

_EXACT: dict[str, frozenset[str]] = {
    "F64": frozenset({"F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"}),
    "F32": frozenset({"F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"}),
    "BF16": frozenset({"BF16", "F8_E4M3", "F8_E5M2"}),
    "F16": frozenset({"F16", "F8_E4M3", "F8_E5M2"}),
    "F8_E4M3": frozenset({"F8_E4M3"}),
    "F8_E5M2": frozenset({"F8_E5M2"}),
}


_COARSE = frozenset({"BF16", "F16", *FLOAT8_DTYPES})


def has_storage_noise(stored: TensorSource) -> bool:
    """Return whether all numbers of a tensor are stored in one dtype that is coarser than float32.

    Their rounding is then known. Of a matrix with an adapter added when it is read, and of a tensor that is joined of
    pieces in different dtypes, it is not.
    """
    dtypes = {piece.dtype for piece in stored_tensors(stored)}
    return len(dtypes) == 1 and dtypes <= _COARSE and not has_factors(stored)


def rounds_values_of(stored: TensorSource, other: TensorSource) -> bool:
    """Return whether storing the values of `other` in the dtype of `stored` can round them.

    A float8 tensor with a scale is read as float32, and holds only multiples of its own scale. Where both are stored
    so, the base is as coarse as the expert. Under another scale, an entry with the same value does not show that the
    weight stayed the same. A tensor that is joined of pieces in different dtypes counts as exact.
    """
    forms = {(piece.dtype, piece.scale is not None) for piece in stored_tensors(stored)}
    if len(forms) != 1:
        return False
    ((dtype, is_scaled),) = forms
    if is_scaled and {(piece.dtype, piece.scale is not None) for piece in stored_tensors(other)} == forms:
        return False
    values = {"F32" if piece.scale is not None else piece.dtype for piece in stored_tensors(other)}
    return is_scaled or not values <= _EXACT.get(dtype, frozenset())


def is_float64(source: TensorSource | None) -> bool:
    """Return whether any stored tensor that a tensor is read from is in float64."""
    return source is not None and any(piece.dtype == "F64" for piece in stored_tensors(source))
