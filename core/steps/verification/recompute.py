"""Compute tensors of a merged checkpoint again from base and experts, and compare them with the stored ones.

This does not call `merge_run`, which would return the parts that it finds in the store instead of computing them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ...coordination.threads import one_thread
from ...errors import CheckpointError, EigenmergeError, RecipeError
from ...merging.float8_output import spread_scale
from ...merging.tensor_merger import TensorMerger
from ...output.read_manifest import Manifest, ManifestModel, ManifestTensor
from ...planning.plan import ModelSummary, Plan, TensorPlan
from ...planning.shards import output_entries
from ...recipe.recipe import Recipe, recipe_from_mapping
from ...storage.checkpoints.tensor_reader import TensorReader
from ...storage.store import Store
from ...storage.torch_dtypes import torch_dtype
from ..make_plan import make_plan

# Another machine, number of threads or route (kept sums, a GPU) adds in another order.
TOLERANCE = 1e-5

Outcome = Literal["identical", "within tolerance", "differs", "not recomputed"]


@dataclass(frozen=True, slots=True)
class Recomputed:
    """The comparison of one tensor.

    difference : largest absolute difference, relative to the largest absolute value of the stored tensor
    reason : why the tensor was not recomputed, or differs
    """

    name: str
    outcome: Outcome
    difference: float = 0.0
    reason: str = ""


class NotReachableError(CheckpointError):
    """A model is missing or has changed, so nothing can be recomputed."""


def plan_again(manifest: Manifest, storage_options: Mapping[str, Any] | None, device: str) -> Plan:
    """Return the plan of the merge that wrote the checkpoint, from the same models.

    Raises
    ------
    NotReachableError : a model is missing or has changed, or this version cannot plan the recipe
    """
    try:
        recipe: Recipe = recipe_from_mapping(
            {**manifest.recipe, "storage_options": storage_options}, "the manifest's recipe"
        )
        # With allow_nonfinite a tensor that was kept at the base because of NaN is kept again.
        plan = make_plan(recipe, allow_nonfinite=True, device=device)
    except RecipeError as error:
        raise NotReachableError(f"this version cannot plan the recipe: {error}") from None
    except EigenmergeError as error:
        raise NotReachableError(str(error)) from None
    changed = _changed(plan.base, manifest.base)
    if len(plan.experts) != len(manifest.experts):
        raise NotReachableError(f"the manifest lists {len(manifest.experts)} experts, its recipe {len(plan.experts)}")
    for now, then in zip(plan.experts, manifest.experts, strict=True):
        changed = changed or _changed(now, then)
    if changed:
        raise NotReachableError(
            f"{changed} has changed since the merge: it has another fingerprint (a copy of a large model too;"
            " docs/store.md says which models are the same)"
        )
    return plan


def choose_sample(plan: Plan, manifest: Manifest, count: int) -> list[tuple[TensorPlan, ManifestTensor]]:
    """Return `count` tensors, spread evenly over the model and the same in every call; merged tensors are preferred.

    Raises
    ------
    NotReachableError : the tensors of the plan differ from those of the manifest
    """
    rows = {row.name: row for row in manifest.tensors}
    planned = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    if planned.keys() != rows.keys():
        raise NotReachableError("the tensors that this version plans differ from those in the manifest")
    merged = [name for name, tensor in planned.items() if tensor.action == "merge"]
    others = [name for name, tensor in planned.items() if tensor.action != "merge"]
    # At least one of the others where there is room: means and copies can be wrong too.
    num_others = min(len(others), max(count - len(merged), 1 if count > 1 else 0))
    names = _spread(merged, count - num_others) + _spread(others, num_others)
    return [(planned[name], rows[name]) for name in names]


def recompute(
    tensor: TensorPlan, stored: bytes, plan: Plan, storage_options: Mapping[str, Any] | None, store: Store | None
) -> Recomputed:
    """Merge one tensor again and compare it with its stored bytes.

    Cost: that of merging the tensor. Without a store, temporary disk space for its spectrum.

    Parameters
    ----------
    store : provides and keeps spectra; None decomposes again
    """
    if tensor.alignment_key is not None and (store is None or not store.exists(tensor.alignment_key)):
        reason = "its filter depends on all layers (alignment_rho): pass the store of the run"
        return Recomputed(tensor.name, "not recomputed", reason=reason)
    with _spectra_store(store) as place, one_thread():
        merger = TensorMerger(plan.settings, place, TensorReader(storage_options))
        try:
            data, _ = merger.merge(tensor)
        except EigenmergeError as error:
            return Recomputed(tensor.name, "not recomputed", reason=str(error))
        if data == stored:
            return Recomputed(tensor.name, "identical")
        return _compare(tensor, bytes(data), stored)


def _compare(tensor: TensorPlan, found: bytes, stored: bytes) -> Recomputed:
    if len(found) != len(stored):
        return Recomputed(tensor.name, "differs", float("inf"), f"{len(stored)} bytes, recomputed {len(found)}")
    dtype = torch_dtype(tensor.out_dtype)
    if not dtype.is_floating_point:
        return Recomputed(tensor.name, "differs", float("inf"), "other integers")
    ours, theirs = _values(tensor, found), _values(tensor, stored)
    largest = float(theirs.abs().max())
    difference = (ours - theirs).abs()
    # A tiny difference may change how the cast rounds: allow one rounding step of the output dtype.
    allowed = TOLERANCE * largest + torch.finfo(dtype).eps * theirs.abs()
    relative = float(difference.max()) / largest if largest > 0 else float(difference.max())
    within = bool((difference <= allowed).all())
    return Recomputed(tensor.name, "within tolerance" if within else "differs", relative)


def _values(tensor: TensorPlan, data: bytes) -> torch.Tensor:
    """Return the values in float64. For factors their product, because the signs of singular vectors are arbitrary."""
    pieces, position = [], 0
    for entry in output_entries(tensor):
        flat = torch.frombuffer(bytearray(data[position : position + entry.num_bytes]), dtype=torch_dtype(entry.dtype))
        pieces.append(flat.reshape(entry.shape).double())
        position += entry.num_bytes
    if tensor.float8 is not None:
        return pieces[0] * spread_scale(pieces[1], tensor.shape)
    return pieces[0] if len(pieces) == 1 else pieces[1] @ pieces[0]


@contextmanager
def _spectra_store(store: Store | None) -> Iterator[Store]:
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="eigenmerge-verify-") as folder:
        yield Store(str(Path(folder)))


def _changed(now: ModelSummary | None, then: ManifestModel | None) -> str:
    if now is None or then is None:
        return "" if now is None and then is None else "the recipe's base_model"
    return "" if now.fingerprint == then.fingerprint else then.name


def _spread(names: Sequence[str], count: int) -> list[str]:
    if count >= len(names):
        return list(names)
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]
