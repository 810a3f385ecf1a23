"""The forms in which checkpoints of one family are stored, and what their merge must give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eigenmerge import merge_task_vectors

from .by_hand import add_mean_delta, merge_matrices
from .families import Family

NUM_EXPERTS = 2


@dataclass(frozen=True)
class Case:
    """Stored models and the model that their merge must equal."""

    base: Path
    experts: Sequence[Path]
    expected: Any
    method: str = "task_arithmetic"


class NotApplicable(Exception):
    """The family has no such form."""


def _models(family: Family, **changes: Any) -> list[Any]:
    base = family.make_model(0, **changes)
    experts = []
    for seed in range(NUM_EXPERTS):
        expert = family.make_model(0, **changes)
        torch.manual_seed(100 + seed)
        with torch.no_grad():
            for value in expert.parameters():
                value.add_(0.02 * torch.randn_like(value))
        experts.append(expert)
    return [base, *experts]


def _save_all(models: Sequence[Any], folder: Path, **options: Any) -> list[Path]:
    places = [folder / name for name in ("base", *(f"expert{index}" for index in range(len(models) - 1)))]
    for model, place in zip(models, places, strict=True):
        model.save_pretrained(place, **options)
    return places


def full(family: Family, folder: Path) -> Case:
    """One file a model, as save_pretrained writes it."""
    models = _models(family)
    base, *experts = _save_all(models, folder)
    return Case(base, experts, add_mean_delta(models[0], models[1:]))


def spectral(family: Family, folder: Path) -> Case:
    """The form `full`, merged by SWUDI over the inputs of every linear map."""
    models = _models(family)
    base, *experts = _save_all(models, folder)
    return Case(base, experts, merge_matrices(models[0], models[1:], merge_task_vectors), "swudi")


def sharded(family: Family, folder: Path) -> Case:
    """Several files a model."""
    models = _models(family)
    base, *experts = _save_all(models, folder, max_shard_size="30KB")
    return Case(base, experts, add_mean_delta(models[0], models[1:]))


def tied(family: Family, folder: Path) -> Case:
    """Tied embeddings; the base stores the shared weight under both names, the experts under one."""
    if not family.tied:
        raise NotApplicable
    models = _models(family, tie_word_embeddings=True)
    base = models[0]
    head = base.get_output_embeddings()
    if head is None or head.weight is not base.get_input_embeddings().weight:
        raise NotApplicable
    places = _save_all(models, folder)
    from safetensors.torch import load_file

    stored = load_file(places[0] / "model.safetensors")
    name = next(name for name, module in base.named_modules() if module is head) + ".weight"
    stored[name] = head.weight.detach().clone()
    save_file(stored, places[0] / "model.safetensors", {"format": "pt"})
    return Case(places[0], places[1:], add_mean_delta(base, models[1:]))


def other_names(family: Family, folder: Path) -> Case:
    """Experts as a training loop stores them: the names of the modules in memory, under the prefix of a wrapper."""
    models = _models(family)
    base, *experts = _save_all(models, folder)
    for model, place in zip(models[1:], experts, strict=True):
        shared: dict[int, str] = {}
        state = {}
        for name, value in model.state_dict().items():
            if shared.setdefault(value.data_ptr(), name) == name:
                state["_orig_mod.module." + name] = value.contiguous()
        save_file(state, place / "model.safetensors", {"format": "pt"})
    return Case(base, experts, add_mean_delta(models[0], models[1:]))


def lora(family: Family, folder: Path) -> Case:
    """LoRA adapters of all linear layers, stacks of experts included."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if not family.lora:
        raise NotApplicable
    base = family.make_model(0)
    base.save_pretrained(folder / "base")
    stacks = [
        name
        for name, value in base.named_parameters()
        if value.ndim == 3 and (".experts." in name or "input_linear" in name or "output_linear" in name)
    ]
    places = []
    for seed in range(NUM_EXPERTS):
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", target_parameters=stacks or None)
        adapted = get_peft_model(family.make_model(0), config)
        torch.manual_seed(100 + seed)
        with torch.no_grad():
            for name, value in adapted.named_parameters():
                if "lora_B" in name:
                    value.add_(0.05 * torch.randn_like(value))
        adapted.save_pretrained(folder / f"expert{seed}")
        places.append(folder / f"expert{seed}")
    merged = [PeftModel.from_pretrained(family.make_model(0), place).merge_and_unload() for place in places]
    return Case(folder / "base", places, add_mean_delta(base, merged))


FORMS: dict[str, Callable[[Family, Path], Case]] = {
    "full": full,
    "SWUDI": spectral,
    "sharded": sharded,
    "tied": tied,
    "other names": other_names,
    "LoRA": lora,
}
