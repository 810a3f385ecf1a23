"""Bytes of one tensor that cross between host memory and a GPU, computed from its plan.

`tests/pretended_device/test_crossing.py` compares them with the bytes that a merge on a pretended device copies. Not
counted are the probes of the report: 16 vectors for each expert, which are a few percent of large weights.
"""

from __future__ import annotations

from ...formats.dtypes import FLOAT8_DTYPES
from ..plan import TensorPlan
from ..shards import written_bytes

_DEQUANTIZED = 4  # bytes of an element of a float8 tensor, which is made float32 in host memory


def bytes_to_device(tensor: TensorPlan) -> int:
    """Return the bytes copied to the GPU: base and experts as they are stored, in every pass."""
    if tensor.action == "copy":
        return 0
    sources = [tensor.base, *(expert.full for expert in tensor.experts)]
    is_float8 = any(source is not None and source.dtype in FLOAT8_DTYPES for source in sources)
    return tensor.bytes_read * (_DEQUANTIZED if is_float8 else 1)


def bytes_to_host(tensor: TensorPlan) -> int:
    """Return the bytes copied from the GPU: the tensor in its output dtype, and what the store keeps of it."""
    if tensor.action == "copy":
        return 0
    return written_bytes(tensor) + tensor.spectrum_bytes + tensor.sums_bytes
