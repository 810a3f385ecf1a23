"""Scales of float8 checkpoints: pair each stored scale with its weight, by name.

Two layouts are in use. compressed-tensors and ModelOpt store `<weight>_scale`, one number per tensor or per row.
DeepSeek stores `<weight>_scale_inv`, one number per block of 128 x 128. In both, despite the name of the second, the
weight is the stored float8 number times the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...formats.dtypes import FLOAT8_DTYPES
from ...listing import TensorSource

_SUFFIXES = ("_scale_inv", "_scale")


def pair_scales(tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Return the tensors with `scale` set on every float8 weight that has one, and without the scales themselves.

    Reading such a weight then gives float32. A float8 tensor without a scale is left unchanged.
    """
    paired: dict[str, TensorSource] = {}
    used: set[str] = set()
    for name, source in tensors.items():
        scale_name = next((name + suffix for suffix in _SUFFIXES if name + suffix in tensors), None)
        if source.dtype in FLOAT8_DTYPES and scale_name is not None:
            used.add(scale_name)
            paired[name] = replace(source, scale=tensors[scale_name])
        else:
            paired[name] = source
    return {name: source for name, source in paired.items() if name not in used}
