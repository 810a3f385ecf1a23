"""Merge models in memory, parameter by parameter: what a merge of their files must give.

The orientation of a weight is taken from its module (Linear, Conv1D, a stack of experts), not from Eigenmerge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch

Merge = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def add_mean_delta(base: Any, experts: Sequence[Any]) -> Any:
    """Return the base plus the mean of the task vectors, for every parameter."""
    merged = deepcopy(base)
    others = [dict(expert.named_parameters()) for expert in experts]
    with torch.no_grad():
        for name, value in merged.named_parameters():
            value.add_(torch.stack([other[name].detach() - value for other in others]).mean(0))
    return merged


def merge_matrices(base: Any, experts: Sequence[Any], merge: Merge) -> Any:
    """Return the base plus `merge` of the task vectors of each linear map, and their mean for everything else.

    Routers of mixtures stay the base's.

    Parameters
    ----------
    merge : merges task vectors of shape (out, in)
    """
    merged = add_mean_delta(base, experts)
    before = dict(base.named_parameters(remove_duplicate=False))
    others = [dict(expert.named_parameters(remove_duplicate=False)) for expert in experts]
    head = base.get_output_embeddings()
    with torch.no_grad():
        for place, module in merged.named_modules():
            if place == "lm_head" or (head is not None and base.get_submodule(place) is head):
                continue
            for name, value in module.named_parameters(place, recurse=False):
                deltas = [other[name] - before[name] for other in others]
                if _is_router(place, module):
                    value.copy_(before[name])
                    continue
                for view in _linear_maps(module, name.rpartition(".")[2]):
                    view(value).copy_(view(before[name]) + merge([view(delta).contiguous() for delta in deltas]))
    return merged


def _is_router(place: str, module: torch.nn.Module) -> bool:
    kind = type(module).__name__
    return "Router" in kind or "Gating" in kind or place.endswith((".gate", ".router", ".router.layer"))


def _linear_maps(module: torch.nn.Module, name: str) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield views of a parameter as matrices (out, in)."""
    linear = isinstance(module, torch.nn.Linear) and name == "weight"
    if linear or (isinstance(module, torch.nn.MultiheadAttention) and name == "in_proj_weight"):
        yield lambda value: value
    elif type(module).__name__ == "Conv1D" and name == "weight":
        yield lambda value: value.T
    elif type(module).__name__ == "Llama4TextExperts":  # as its forward pass multiplies; it has no switches
        yield from _expert_maps(module, name, is_transposed=True, has_gate=True, is_concatenated=True)
    elif type(module).__name__ == "DbrxExpertGLU":
        yield from _dbrx_maps(module, name)
    elif hasattr(module, "is_transposed") and getattr(module, name).ndim == 3:
        yield from _expert_maps(module, name, module.is_transposed, module.has_gate, module.is_concatenated)


def _dbrx_maps(module: Any, name: str) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """The rows of all experts lie one after the other; w2 is multiplied from the right."""
    rows = module.ffn_hidden_size
    for start in range(0, getattr(module, name).shape[0], rows):

        def matrix(value: torch.Tensor, start: int = start) -> torch.Tensor:
            return value[start : start + rows].T if name == "w2" else value[start : start + rows]

        yield matrix


def _expert_maps(
    module: Any, name: str, is_transposed: bool, has_gate: bool, is_concatenated: bool
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    for expert in range(getattr(module, name).shape[0]):

        def matrix(value: torch.Tensor, expert: int = expert) -> torch.Tensor:
            return value[expert].T if is_transposed else value[expert]

        if not (name.startswith("gate_up") and has_gate):
            yield matrix
        elif is_concatenated:
            half = matrix(getattr(module, name)).shape[0] // 2
            yield lambda value, matrix=matrix, half=half: matrix(value)[:half]
            yield lambda value, matrix=matrix, half=half: matrix(value)[half:]
        else:
            yield lambda value, matrix=matrix: matrix(value)[0::2]
            yield lambda value, matrix=matrix: matrix(value)[1::2]
