"""The whole tensors of an adapter that is written: saved modules, and biases beside adapted weights.

PEFT loads a saved module (`modules_to_save`) only with all tensors of the module. A bias of another module is stored as
the base's tensor: `q_proj.base_layer.bias` where the weight has factors, `norm.bias` elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...errors import RecipeError
from ...formats.digest import hash_json
from ..plan import AdapterFactors
from .tensor_planner import PlannedTensor

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class WholeTensors:
    """The plans of whole tensors, and what adapter_config.json says of them.

    modules : modules_to_save, by the adapter's names
    """

    tensors: list[PlannedTensor]
    modules: frozenset[str]
    bias: Literal["none", "all", "lora_only"]


def plan_whole_tensors(
    planned: Sequence[PlannedTensor], names: Mapping[str, str], as_factors: Collection[str]
) -> WholeTensors:
    """Return the tensors that are stored whole.

    Parameters
    ----------
    planned : all tensors of the merged model
    names : the adapters' name of each weight that an adapter changes, by the base's name
    as_factors : the base's names of the weights whose factors are written

    Raises
    ------
    RecipeError : a module that has to be saved whole contains a weight whose factors are written
    """
    adapted = {_module(names[name]) for name in as_factors}
    changed = [item for item in planned if item.plan.action != "copy" and item.plan.name in names]
    whole = [item for item in changed if item.plan.name not in as_factors]
    modules = {
        _module(item.plan.name): _module(names[item.plan.name]) for item in whole if not _is_bias(item.plan.name)
    }
    tensors: list[PlannedTensor] = []
    for item in planned:
        name = item.plan.name
        saved = next((module for module in _enclosing(name) if module in modules), None)
        if saved is None:
            continue
        if name in as_factors:
            raise RecipeError(
                f"output: adapter: {name} has factors in one adapter and is inside {saved}, which another adapter saves"
                " whole; write a checkpoint"
            )
        tensors.append(_stored(item, modules[saved] + name[len(saved) :]))
    biases = [item for item in whole if not any(module in modules for module in _enclosing(item.plan.name))]
    outside = False
    for item in biases:
        module = _module(names[item.plan.name])
        tensors.append(_stored(item, f"{module}.base_layer.bias" if module in adapted else names[item.plan.name]))
        outside |= module not in adapted
    bias = "none" if not biases else "all" if outside else "lora_only"
    return WholeTensors(tensors, frozenset(modules.values()), bias)


def _stored(item: PlannedTensor, adapter_name: str) -> PlannedTensor:
    full = AdapterFactors(rank=0, down=None, up=None, full=PREFIX + adapter_name)
    return PlannedTensor(replace(item.plan, adapter=full), hash_json([item.identity, full.full]))


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _enclosing(name: str) -> list[str]:
    """Return the modules that contain a tensor, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
