"""float8 checkpoints: which stored tensor holds the scale of which weight.

Two layouts are in use. compressed-tensors and ModelOpt store `<weight>_scale` (one number, or one a row); DeepSeek's
stores `<weight>_scale_inv`, one number for a block of 128 x 128. In both, despite the second's name, the weight is the
stored float8 *times* the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...listing import TensorSource

_SUFFIXES = ("_scale_inv", "_scale")


def pair_scales(tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """The same tensors, every float8 one with its `scale`, and without the scales themselves.

    The scale has become a part of the weight: reading the weight gives float32 numbers. A float8 tensor without a scale
    stays as it is: its numbers are meant.
    """
    paired: dict[str, TensorSource] = {}
    used: set[str] = set()
    for name, source in tensors.items():
        scale_name = next((name + suffix for suffix in _SUFFIXES if name + suffix in tensors), None)
        if source.dtype.startswith("F8_") and scale_name is not None:
            used.add(scale_name)
            paired[name] = replace(source, scale=tensors[scale_name])
        else:
            paired[name] = source
    return {name: source for name, source in paired.items() if name not in used}
