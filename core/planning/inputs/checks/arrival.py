"""How much of each expert has a place in the output, and errors where names evidently do not match.

A tensor without a place is legitimate where the expert has something that the base does not: the head of another task,
a value head, buffers. It is a mismatch of names where the base at the same time has weights that no expert has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from ....errors import CheckpointError
from ....formats.dtypes import MERGEABLE_DTYPES
from ....listing import ModelListing, TensorSource
from ...names import layer_of, natural_key, tensor_kind
from ...plan import Arrival
from ..checkpoint import Checkpoint

_MAX_NAMES = 100


def measure_arrival(checkpoint: Checkpoint) -> Arrival:
    """Return how much of one expert has a place."""
    sizes = checkpoint.parameter_counts()
    left_out = sorted(checkpoint.left_out(), key=natural_key)
    total = sum(sizes.values())
    lost = sum(sizes[name] for name in left_out)
    share = 1 - lost / total if total else 1.0
    return Arrival(len(sizes) - len(left_out), share, tuple(left_out[:_MAX_NAMES]), len(left_out))


def check_arrival(checkpoints: Sequence[Checkpoint], reference: ModelListing) -> None:
    """Check that something of every expert has a place.

    Raises
    ------
    CheckpointError : an expert gives nothing
    """
    for checkpoint in checkpoints:
        sizes = checkpoint.parameter_counts()
        left_out = checkpoint.left_out()
        if len(left_out) < len(sizes):
            continue
        first = min(reference.tensors, key=natural_key, default="nothing")
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(sizes)} tensors has a place in {reference.name}: it stores names such"
            f" as {min(left_out, key=natural_key, default='nothing')}, expected names such as {first}; give a model"
            " that was fine-tuned from this base"
        )


def check_untouched(checkpoints: Sequence[Checkpoint], reference: ModelListing, untouched: Iterable[str]) -> None:
    """Check that weights of the base that no expert has do not face weights of experts that have no place.

    Heads of another task and whole towers that only one side has are no mismatch.

    Parameters
    ----------
    untouched : names of the reference's tensors that no expert has

    Raises
    ------
    CheckpointError : weights on both sides belong to the same layers, or have the same role or shape
    """
    missing = {name: source for name in untouched if _is_weight(name, source := reference.tensors[name])}
    if not missing:
        return
    for checkpoint in checkpoints:
        unplaced = {name: checkpoint.tensors[name] for name in checkpoint.extra_names()}
        unplaced = {name: source for name, source in unplaced.items() if _is_weight(name, source)}
        found = _find_mismatch(checkpoint, reference, missing, unplaced) if unplaced else None
        if found is None:
            continue
        name, own = found
        raise CheckpointError(
            f"{checkpoint.name}: {len(unplaced)} of its weights have no place in {reference.name}, such as {own}"
            f" {list(unplaced[own].shape)}, and {len(missing)} weights there are in no expert, such as {name}"
            f" {list(missing[name].shape)}; rename the tensors as there, or set `missing: base` to keep the base's"
        )


def _find_mismatch(
    checkpoint: Checkpoint,
    reference: ModelListing,
    missing: dict[str, TensorSource],
    unplaced: dict[str, TensorSource],
) -> tuple[str, str] | None:
    """Return a weight of the base and one of the expert that seem to be the same."""
    counterparts: dict[str, set[str]] = {}  # the reference's stacks by the expert's
    for name, stored in checkpoint.names.items():
        counterparts.setdefault(_stack(stored), set()).add(_stack(name))
    by_stack: dict[str, str] = {}
    by_shape: dict[tuple[int, ...], str] = {}  # in any stack
    for name, source in missing.items():
        stack = _stack(name)
        by_stack.setdefault(stack, name)
        if stack:
            by_shape.setdefault(source.shape, name)
    outside = [name for name in missing if not _stack(name)]
    same_class = bool(_classes(reference)) and _classes(reference) == _classes(checkpoint.listing)
    for own, source in unplaced.items():
        own_stack = _stack(own)
        if own_stack:
            found = next((by_stack[stack] for stack in counterparts.get(own_stack, ()) if stack in by_stack), None)
            if found is None and own_stack not in counterparts:
                found = by_shape.get(source.shape)
        else:
            found = next((name for name in outside if _is_alike(name, missing[name], own, source, same_class)), None)
        if found is not None:
            return found, own
    return None


def _is_alike(name: str, source: TensorSource, own: str, own_source: TensorSource, same_class: bool) -> bool:
    """Return whether two weights outside of layers have one role: two tables of tokens, or two output projections.

    In models of one class, which have the same heads, an equal shape is enough.
    """
    kind = tensor_kind(name, source.shape, source.dtype)
    if kind == tensor_kind(own, own_source.shape, own_source.dtype) != "matrix":
        return source.shape[1:] == own_source.shape[1:]
    return same_class and source.shape == own_source.shape


def _is_weight(name: str, source: TensorSource) -> bool:
    if len(source.shape) < 2 or source.dtype not in MERGEABLE_DTYPES:
        return False
    return tensor_kind(name, source.shape, source.dtype) not in ("buffer", "empty", "vector")


def _stack(name: str) -> str:
    """Return what stands before the number of the layer; empty outside of layers."""
    found = layer_of(name)
    if found is not None:
        return found[0]
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if index and part.isdigit()), 0)
    return ".".join(parts[:first])


def _classes(listing: ModelListing) -> list[object]:
    names = (listing.config or {}).get("architectures")
    return cast("list[object]", names) if isinstance(names, list) else []
