"""Which stored dtypes hold all values of another: what rounding an expert's storage can have added."""

from __future__ import annotations

from ...listing import TensorSource
from ...views import stored_tensors

_EXACT: dict[str, frozenset[str]] = {
    "F64": frozenset({"F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"}),
    "F32": frozenset({"F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"}),
    "BF16": frozenset({"BF16", "F8_E4M3", "F8_E5M2"}),
    "F16": frozenset({"F16", "F8_E4M3", "F8_E5M2"}),
    "F8_E4M3": frozenset({"F8_E4M3"}),
    "F8_E5M2": frozenset({"F8_E5M2"}),
}


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
