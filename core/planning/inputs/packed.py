"""Recognize quantized weights by the tensors of a checkpoint: packed integers, their scales, and 4-bit or 6-bit floats.

config.json is not asked: it may lack the entry, or name a quantization that the weights no longer have. An integer
tensor is a weight if its name says so (`weight`, `qweight`, `weight_packed`), if scales, zero points or a codebook lie
beside it, or if its module has no other weight. Integers that models keep beside their weights (positions, masks,
indices, counters) are none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...formats.dtypes import DTYPES, FLOAT8_DTYPES
from ...listing import TensorSource

# The last part of a name that is a weight, or holds the numbers of one: weight, in_proj_weight, qweight, weight_packed.
_WEIGHT = re.compile(r"(^|_)q?weight(_|$)")
# The last part of the name of what restores a weight from integers. s, SU, suh, SV, svh: Marlin, QuIP#, EXL3.
_COMPANION = re.compile(
    r"scale|absmax|zero|codebook|centroid|quant_(map|state)|(^|_)(nested|SCB|biases|s|su|suh|sv|svh|SU|SV)(_|$)"
)
# The last part of the name of integers that belong to a model and are not weights.
_BUFFER = re.compile(
    r"(^|_)(index|indexes|ids?|idx|eid|mask|bias|map|perm|table|count|counts|step|steps|tracked|offsets?|positions?"
    r"|tokens?|labels?|buckets?|lengths?|sizes?|shape|version|lookup)$"
)
# Masks, and indices as torch stores them. No format packs weights into them.
_NEVER_PACKED = frozenset({"I64", "U64", "BOOL"})
_ACTIVATION_SCALE = re.compile(r"(input|output|act|activation|[kvq])_?(activation_)?scale|scale_(input|ub)$")

# Formats by a tensor name that only they use. It is for the message alone.
_FORMATS = (
    ("GPTQ", re.compile(r"(^|\.)g_idx$")),
    ("AWQ or GPTQ", re.compile(r"(^|\.)qweight$")),
    ("bitsandbytes", re.compile(r"\.(absmax|quant_map|SCB)$|\.quant_state\.")),
    ("compressed-tensors", re.compile(r"(^|\.)weight_(packed|shape)$")),
    ("NVFP4", re.compile(r"(^|\.)weight_scale_2$")),
    ("MXFP4", re.compile(r"_blocks$")),
    ("AQLM", re.compile(r"(^|\.)codebooks$")),
    ("HQQ", re.compile(r"(^|\.)W_q$")),
    ("EXL2", re.compile(r"(^|\.)q_weight$")),
    ("EXL3", re.compile(r"(^|\.)trellis$")),
    ("EETQ", re.compile(r"(^|\.)weight_scales$")),
    ("MLX", re.compile(r"(^|\.)biases$")),
)


def find_packed_weight(tensors: Mapping[str, TensorSource]) -> str | None:
    """Describe the first tensor that holds a quantized weight; None where every weight is a plain float.

    A float8 weight with its scale attached, or with no scale at all, is a plain float.

    Cost: O(T) for T tensors.

    Returns
    -------
    str or None : "NAME is U8 [32, 8] beside NAME_scale: quantized weights (NVFP4)"
    """
    suspects = [name for name, source in tensors.items() if DTYPES[source.dtype].kind not in ("float", "complex")]
    if not suspects:
        return None
    suspects.sort(key=lambda name: tensors[name].dtype.startswith("F"))  # packed integers before their float8 scales
    by_module: dict[str, list[str]] = {}
    for name in tensors:
        by_module.setdefault(name.rpartition(".")[0], []).append(name)
    for name in suspects:
        # what belongs to a weight lies beside it, or below its name (X.weight.absmax)
        related = [other for other in by_module[name.rpartition(".")[0]] if other != name] + by_module.get(name, [])
        reason = _reason(name, tensors[name], related, tensors)
        if reason is not None:
            related += by_module.get(f"{name}.quant_state", [])
            found = next((label for label, rule in _FORMATS if any(map(rule.search, [name, *related]))), "")
            kind = f"quantized weights ({found})" if found else "quantized weights"
            return f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}{reason}: {kind}"
    return None


def _reason(name: str, source: TensorSource, related: Iterable[str], tensors: Mapping[str, TensorSource]) -> str | None:
    """Return what shows that a tensor is a quantized weight, None if it is none."""
    module, _, last = name.rpartition(".")
    if source.dtype in FLOAT8_DTYPES:
        return None if source.scale is not None else _unread_scale(name, related)
    if DTYPES[source.dtype].kind == "opaque":
        return ""
    if not source.shape or source.dtype == "BOOL" or _BUFFER.search(last) or _COMPANION.search(last):
        return None
    companion = next((other for other in related if _COMPANION.search(other.rpartition(".")[2])), None)
    if companion is not None:
        return f" beside {companion}"
    if _is_weight(name) and (len(source.shape) > 1 or source.dtype not in _NEVER_PACKED):
        return " under the name of a weight"
    if len(source.shape) < 2 or source.dtype in _NEVER_PACKED or not module:
        return None
    has_weight = any(_is_weight(other) and DTYPES[tensors[other].dtype].kind == "float" for other in related)
    return None if has_weight else f", and {module} has no other weight"


def _is_weight(name: str) -> bool:
    """Return whether a name is that of a weight, or of one part of a weight (X.weight._data)."""
    parent, _, last = name.rpartition(".")
    return bool(_WEIGHT.search(last)) or parent.endswith("weight")


def _unread_scale(name: str, related: Iterable[str]) -> str | None:
    """Return the scale of a float8 weight that is not attached to it. Without it the weight would be another one."""
    for other in related:
        last = other.rpartition(".")[2]
        if re.search(r"scale|absmax|SCB", last) and not _ACTIVATION_SCALE.search(last):
            return f" with the scale {other}, expected {name}_scale or {name}_scale_inv"
    return None
