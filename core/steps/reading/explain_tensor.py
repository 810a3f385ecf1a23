"""Explain one tensor of a finished merge: what was done, why, with which experts, sources, parameters and objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, cast

from ...errors import CheckpointError
from ...listing import TensorSource
from ...output.read_manifest import Manifest, ManifestTensor
from ...planning.plan import ExpertTensor, Plan, TensorPlan, spectrum_keys
from ...recipe.recipe import recipe_from_mapping
from ...storage.store import Store
from ...views import stored_tensors
from ..verification.recompute import NotReachableError, plan_again
from .parameter_origins import DEFAULT, parameter_origins, weight_origins
from .rank_rows import RankRow, rank_rows
from .run_records import RunRecords

_MOST_SIMILAR = 5


@dataclass(frozen=True, slots=True)
class ParameterFact:
    """One parameter of the method, and the place in the recipe that set it."""

    name: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class ExpertFact:
    """One expert's part in a tensor.

    weight : factor on its task vector; None where it took no part: weight 0, or nothing to add
    origin : the place that set the weight
    share : of the squared norms of the weighted task vectors, 0 to 1; None where the store has no statistics
    sources : what is read of it: "FILE [start, stop) F32 32x64"; empty without a plan
    """

    name: str
    weight: float | None
    origin: str
    share: float | None
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of one tensor.

    base_sources : what is read of the base
    objects : keys in the store, with "missing" where the store does not have them (any more)
    not_planned : why sources are not listed; "" where they are
    no_spectra : why eigenvalues are missing; "" where they are there, or the tensor has none
    """

    tensor: ManifestTensor
    parameters: tuple[ParameterFact, ...]
    experts: tuple[ExpertFact, ...]
    base: str | None
    base_sources: tuple[str, ...]
    ranks: tuple[RankRow, ...]
    objects: tuple[tuple[str, bool], ...]
    not_planned: str
    no_spectra: str

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        data = asdict(self)
        data["tensor"] = self.tensor.model_dump(mode="json", exclude={"parameters"})
        data["objects"] = [{"key": key, "in_store": there} for key, there in self.objects]
        return data


def find_tensor(manifest: Manifest, name: str) -> ManifestTensor:
    """Return the row of a tensor, by its name in the model or in the file.

    Raises
    ------
    CheckpointError : there is none; names the nearest
    """
    for tensor in manifest.tensors:
        if name == tensor.name or name in tensor.stored_names:
            return tensor
    names = [tensor.name for tensor in manifest.tensors]
    near = [known for known in names if name in known] or get_close_matches(name, names, _MOST_SIMILAR, 0.5)
    hint = (
        f"; the nearest: {', '.join(near[:_MOST_SIMILAR])}" if near else f"; names look like {names[len(names) // 2]}"
    )
    raise CheckpointError(f"tensor {name!r}: the checkpoint has {len(names)} tensors, and none of this name{hint}")


def explain_tensor(
    manifest: Manifest,
    name: str,
    records: RunRecords,
    store: Store,
    *,
    sources: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Explanation:
    """Return what is known of a tensor.

    Cost: with `sources`, a plan: one read of the headers of all models, and what identifies them.

    Parameters
    ----------
    records : of the run, from `read_run_records`
    sources : plan the merge again, which tells what was read; not possible where a model is missing or has changed

    Raises
    ------
    CheckpointError : no such tensor
    RecipeError : this version cannot read the recipe of the manifest
    """
    tensor = find_tensor(manifest, name)
    recipe = recipe_from_mapping(manifest.recipe, "the manifest's recipe")
    origins = parameter_origins(recipe, manifest, tensor)
    planned, not_planned = _plan_of(manifest, tensor, storage_options) if sources else (None, "not asked for")
    alone = manifest.model_copy(update={"tensors": [tensor]})
    ranks = rank_rows(alone, records) if tensor.rank is not None else []
    return Explanation(
        tensor=tensor,
        parameters=tuple(
            ParameterFact(key, value, origins.get(key, DEFAULT)) for key, value in tensor.parameters.items()
        ),
        experts=tuple(_experts(manifest, tensor, planned, weight_origins(recipe, manifest, tensor), records)),
        base=manifest.base.name if manifest.base is not None else None,
        base_sources=_describe_sources([planned.base]) if planned is not None else (),
        ranks=tuple(ranks),
        objects=tuple((key, store.exists(key)) for key in _object_keys(tensor, planned)),
        not_planned=not_planned,
        no_spectra=records.missing if tensor.rank is not None else "",
    )


def _plan_of(
    manifest: Manifest, tensor: ManifestTensor, storage_options: Mapping[str, Any] | None
) -> tuple[TensorPlan | None, str]:
    try:
        plan: Plan = plan_again(manifest, storage_options, "cpu")
    except NotReachableError as error:
        return None, str(error)
    found = next((one for shard in plan.shards for one in shard.tensors if one.name == tensor.name), None)
    return found, "" if found is not None else "this version plans other tensors"


def _experts(
    manifest: Manifest, tensor: ManifestTensor, planned: TensorPlan | None, origins: Sequence[str], records: RunRecords
) -> list[ExpertFact]:
    order: Sequence[int] = ()
    if tensor.expert_order is not None and tensor.expert_order < len(manifest.expert_orders):
        order = manifest.expert_orders[tensor.expert_order]
    elif planned is not None:  # a manifest of an earlier version
        order = [expert.expert for expert in planned.experts]
    weights = dict(zip(order, tensor.weights or [], strict=False))
    shares = dict(zip(order, energy_shares(tensor, records, len(order)), strict=False))
    read: dict[int, list[ExpertTensor]] = {}
    for expert in planned.experts if planned is not None else ():
        read.setdefault(expert.expert, []).append(expert)
    return [
        ExpertFact(
            model.name,
            weights.get(index),
            origins[index],
            shares.get(index),
            tuple(text for expert in read.get(index, ()) for text in _expert_sources(expert)),
        )
        for index, model in enumerate(manifest.experts)
    ]


def energy_shares(tensor: ManifestTensor, records: RunRecords, num_experts: int) -> list[float]:
    """Return each expert's share of the squared norms of the task vectors, as the decomposition measured them."""
    if tensor.measures is not None and len(tensor.measures.norms) == num_experts:
        squares = [norm * norm for norm in tensor.measures.norms]
        total = sum(squares)
        return [square / total for square in squares] if 0 < total < math.inf else []
    sums = [0.0] * num_experts
    for row in records.matrices(tensor.name):
        found = row.spectrum.info.get("expert_norms")
        norms = cast("list[float]", found) if isinstance(found, list) else []
        if len(norms) != num_experts:
            return []
        for index, norm in enumerate(norms):
            sums[index] += float(norm) ** 2
    total = sum(sums)
    return [value / total for value in sums] if total > 0 else []


def _expert_sources(expert: ExpertTensor) -> tuple[str, ...]:
    if expert.is_base:
        return ("the base itself",)
    factors = expert.lora.sources if expert.lora is not None else ()
    return _describe_sources([expert.full, *factors]) or ("nothing: it does not change the tensor",)


def _describe_sources(sources: Sequence[TensorSource | None]) -> tuple[str, ...]:
    found: list[str] = []
    for source in sources:
        for stored in stored_tensors(source) if source is not None else ():
            shape = "x".join(map(str, stored.shape)) or "scalar"
            found.append(f"{stored.uri} bytes [{stored.start}, {stored.stop}) {stored.dtype} {shape}")
    return tuple(found)


def _object_keys(tensor: ManifestTensor, planned: TensorPlan | None) -> list[str]:
    if planned is None:
        return [tensor.spectrum] if tensor.spectrum is not None else []
    matrices = (planned, *planned.views)
    keys = [*spectrum_keys(planned), planned.alignment_key, planned.outputs_alignment_key]
    keys += [key for one in matrices for key in (one.calibration_key, one.sums_key)]
    keys += [one.outputs.sums_key for one in matrices if one.outputs is not None]
    return [key for key in keys if key is not None]
