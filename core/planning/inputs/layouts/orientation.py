"""Which 2-D weights are stored (in, out): by the lengths of their biases, else by the architecture.

Most libraries store (out, in). GPT-2 and its relatives have Conv1D layers, which store (in, out); Flax calls such a
weight `kernel`; some projections are parameters that their module multiplies from the right (CLIP's `text_projection`).
A bias has one entry for each output, so a weight of two different sizes with a bias shows its own orientation. Other
code bases use the names of Conv1D layers for (out, in) weights, so a bias has precedence over the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Set
from typing import cast

Shapes = Mapping[str, tuple[int, ...]]

# Layers that are Conv1D in transformers; the other families that use these names (StarCoder, Qwen 1) have Linear ones.
_CONV1D_LAYER = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
_CONV1D_MODEL_TYPES = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_encoder", "clvp_decoder"}
)
# Parameters that their module multiplies from the right, and weights of Flax.
_RIGHT_FACTOR = re.compile(r"(^|\.)(kernel|proj|\w*projection|\w*projection_weight)$")
_CONFIG_DEPTH = 3  # of nested configs; vision-language models nest that of their language model


def find_in_out(shapes: Shapes, config: Mapping[str, object] | None) -> frozenset[str]:
    """Return the names of the 2-D weights that are stored (in, out).

    Parameters
    ----------
    shapes : by tensor name
    config : config.json of the model
    """
    names = [name for name, shape in shapes.items() if len(shape) == 2]
    shown = {name: is_in_out for name in names for is_in_out in [_shown_by_bias(name, shapes)] if is_in_out is not None}
    conv1d = {name for name in names if _CONV1D_LAYER.search(name)}
    seen_in_conv1d = {shown[name] for name in conv1d if name in shown}
    has_conv1d = seen_in_conv1d == {True} if seen_in_conv1d else _is_conv1d_architecture(conv1d, shapes, config)
    found = {name for name in names if shown.get(name, False)}
    found |= {name for name in conv1d if has_conv1d and name not in shown}
    found |= {name for name in names if name not in shown and _RIGHT_FACTOR.search(name)}
    return same_modules(found, shown, names)


def same_modules(in_out: Set[str], shown: Collection[str], names: Iterable[str]) -> frozenset[str]:
    """Return the names that are stored (in, out), with those of modules of the same name in other layers.

    Parameters
    ----------
    in_out : names of weights that are stored (in, out)
    shown : names of weights whose orientation is known, whichever it is
    """
    modules = {_module(name) for name in in_out if name.endswith(".weight")}
    modules -= {_module(name) for name in shown if name not in in_out}
    return frozenset(in_out) | {
        name for name in names if name not in shown and name.endswith(".weight") and _module(name) in modules
    }


def _shown_by_bias(name: str, shapes: Shapes) -> bool | None:
    """Return whether the bias of a weight has the length of its last dimension; None where this shows nothing."""
    module, _, kind = name.rpartition(".")
    bias = shapes.get(f"{module}.bias" if module else "bias")
    rows, columns = shapes[name]
    if kind not in ("weight", "kernel") or bias is None or len(bias) != 1 or rows == columns:
        return None
    return {rows: False, columns: True}.get(bias[0])


def _is_conv1d_architecture(conv1d: set[str], shapes: Shapes, config: Mapping[str, object] | None) -> bool:
    """Return whether layers with the names of Conv1D layers are such layers, in a model without biases."""
    if model_types(config or {}) & _CONV1D_MODEL_TYPES:
        return True
    # Query, key and value are fused, so the larger side is the output.
    sides = [shapes[name] for name in conv1d if _module(name) == "c_attn"]
    return bool(sides) and all(columns == 3 * rows for rows, columns in sides)


def model_types(config: Mapping[str, object]) -> set[str]:
    """Return the model_type of a model and of its parts."""
    return {str(part["model_type"]) for part in config_parts(config) if "model_type" in part}


def config_parts(config: Mapping[str, object], depth: int = _CONFIG_DEPTH) -> list[Mapping[str, object]]:
    """Return a config.json and the configs nested in it: text_config, thinker_config.text_config, ..."""
    found = [config]
    for value in config.values():
        if isinstance(value, Mapping) and depth:
            found += config_parts(cast("Mapping[str, object]", value), depth - 1)
    return found


def _module(name: str) -> str:
    """Return the last part of a module's name: "c_proj" for transformer.h.0.attn.c_proj.weight."""
    return name.rpartition(".")[0].rpartition(".")[2]
