"""Load tensors without data into the class of transformers, and report missing, unexpected and misshapen ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from ...formats.safetensors_header import TensorEntry
from ...storage.torch_dtypes import torch_dtype
from .load_check import NotCheckedError
from .model_class import ModelClass, first_line, quiet_transformers

Entries = Mapping[str, TensorEntry]

# Scales of float8 weights: they belong to the weight of this name.
_SCALE = re.compile(r"(?P<weight>.+)_(scale_inv|scale)")
_OWN_QUANTIZATIONS = ("fp8", "compressed-tensors")  # what `output: {float8: ...}` writes
_REPORT_ROW = re.compile(r"^(?P<key>\S+)\s+\|\s+(?P<status>CONVERSION|UNEXPECTED)\b", re.MULTILINE)


def find_key_problems(model_class: ModelClass, entries: Entries) -> list[str]:
    """Return one line for each tensor that the class misses, does not expect, or expects in another shape.

    transformers converts names and forms itself, and knows which weights are tied. No weights are read: the tensors are
    on the meta device.

    Parameters
    ----------
    entries : stored name to dtype and shape

    Raises
    ------
    NotCheckedError : the weights are quantized
    """
    config, tensors = _without_quantization(model_class.config, entries)
    name = model_class.name
    with quiet_transformers() as log:
        try:
            _, info = model_class.model.from_pretrained(
                None,
                config=config,
                state_dict=_on_meta(tensors),
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # whatever the class of a model raises
            return _conversion_problems(log, name) or [f"{name} cannot be built: {first_line(error)}"]
    problems = [f"{key}: {name} needs it, and it is in no file" for key in sorted(info["missing_keys"])]
    problems += [f"{key}: {name} has no such weight" for key in sorted(info["unexpected_keys"])]
    problems += [
        f"{key}: has shape {list(found)}, {name} expects {list(expected)}"
        for key, found, expected in sorted(info["mismatched_keys"], key=lambda row: row[0])
    ]
    return problems + [str(message) for message in info.get("error_msgs", ())]


def find_adapter_key_problems(base: ModelClass, folder: Path, entries: Entries) -> list[str]:
    """As `find_key_problems`, for an adapter that PEFT puts into its base model.

    Parameters
    ----------
    base : class and config of the base model
    folder : of the adapter, on this machine
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    with quiet_transformers():
        try:
            with torch.device("meta"):
                config, _ = _without_quantization(base.config, {})
                model = get_peft_model(base.model(config), PeftConfig.from_pretrained(str(folder)))
            found = set_peft_model_state_dict(model, _on_meta(entries))
        except Exception as error:  # whatever PEFT raises
            return [f"PEFT cannot load the adapter into {base.name}: {first_line(error)}"]
    missing = [key for key in found.missing_keys if ".lora_" in key or ".modules_to_save." in key]
    problems = [f"{key.replace('.default', '')}: PEFT needs it, and it is in no file" for key in sorted(missing)]
    return problems + [f"{key}: PEFT finds no module for it" for key in sorted(found.unexpected_keys)]


def _on_meta(entries: Entries) -> dict[str, torch.Tensor]:
    try:
        return {
            name: torch.empty(entry.shape, dtype=torch_dtype(entry.dtype), device="meta")
            for name, entry in entries.items()
        }
    except CheckpointError as error:
        raise NotCheckedError(str(error)) from None


def _without_quantization(config: Any, entries: Entries) -> tuple[Any, Entries]:
    """Return config and tensors as those of the plain model: a float8 weight counts as the weight, without scale."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return config, entries
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method not in _OWN_QUANTIZATIONS:
        raise NotCheckedError(f"its weights are quantized ({method})")
    plain = copy.deepcopy(config)
    del plain.quantization_config
    scales = {name for name in entries if (match := _SCALE.fullmatch(name)) and match["weight"] in entries}
    return plain, {name: entry for name, entry in entries.items() if name not in scales}


def _conversion_problems(log: list[str], name: str) -> list[str]:
    """Return the keys that transformers could not build from stored ones, which it only logs."""
    rows = _REPORT_ROW.findall("\n".join(log))
    problems = [
        f"{key}: {name} cannot build it from the stored tensors; one of them is missing or has another shape"
        for key, status in rows
        if status == "CONVERSION"
    ]
    return problems + [f"{key}: {name} has no such weight" for key, status in rows if status == "UNEXPECTED"]
