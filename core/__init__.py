"""The pipeline without Prefect: recipe, plan, numerics, storage, and the shard-sized steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .numerics.tensor_level import merge_task_vectors

__all__ = ["merge_task_vectors"]


def __getattr__(name: str) -> Any:
    # Late, because reading a recipe must not import torch.
    if name == "merge_task_vectors":
        from .numerics.tensor_level import merge_task_vectors

        return merge_task_vectors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
