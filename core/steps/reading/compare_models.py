"""Compare two models or merges: their tensors, and of merges also the ranks, the recipes and the experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointError
from ...formats.file_names import MANIFEST_NAME
from ...listing import ModelListing, TensorSource
from ...output.read_manifest import Manifest, ManifestModel, read_manifest
from ...planning.inputs.adapted_base import merge_adapter
from ...planning.inputs.names.matching import match_names
from ...planning.names import layer_of
from ...recipe.differences import by_importance, differing_keys
from ...storage.checkpoints.list_model import list_model
from ...storage.checkpoints.tensor_reader import TensorReader
from ...storage.store import Store
from .compare_tensors import GroupDifference, TensorDifference, compare_tensor, sum_groups
from .find_run import destination_of_run, is_run_key

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One side of a comparison.

    name : as the user wrote it
    manifest : None where it is no merge
    """

    name: str
    listing: ModelListing
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that differs between A and B.

    tensors : the names of A first, then those that only B has
    layers : tensors of one layer together, the largest difference first; of tensors in both models
    whole : all tensors that both have, together; None where they have none in common
    ranks : name, rank in A, rank in B, of tensors with a rank in both, where it differs
    recipe_keys : path of a key of the recipe, and its value in A and in B, the most important first; empty unless both
        are merges
    inputs : "expert NAME: only in A" and the like
    base : the name of the model from which the changes are compared; None: the weights themselves
    """

    a: ComparedModel
    b: ComparedModel
    tensors: tuple[TensorDifference, ...]
    layers: tuple[GroupDifference, ...]
    whole: GroupDifference | None
    ranks: tuple[tuple[str, int, int], ...] = ()
    recipe_keys: Mapping[str, list[object]] = field(default_factory=dict[str, list[object]])
    inputs: tuple[str, ...] = ()
    base: str | None = None

    def of_status(self, status: str) -> list[TensorDifference]:
        """Return the tensors of one status."""
        return [row for row in self.tensors if row.status == status]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {
            "a": self.a.name,
            "b": self.b.name,
            "base": self.base,
            "whole": self.whole.as_dict() if self.whole else None,
            "tensors": [row.as_dict() for row in self.tensors],
            "layers": [row.as_dict() for row in self.layers],
            "ranks": [{"name": name, "a": one, "b": other} for name, one, other in self.ranks],
            "recipe_keys": {path: {"a": values[0], "b": values[1]} for path, values in self.recipe_keys.items()},
            "inputs": list(self.inputs),
        }


def compare_models(
    a: str,
    b: str,
    *,
    base: str | None = None,
    store: Store | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_tensor: Progress | None = None,
) -> Comparison:
    """Compare two checkpoints, adapted models, adapters or runs of a store.

    Cost: one read of all tensors that both have, in blocks; never a whole model in memory.

    Parameters
    ----------
    a, b : as models in recipes: directory, file, URI, Hub name, BASE+ADAPTER; or the key of a run, or its beginning
    base : a model, to compare what A and B add to it
    store : where runs are looked up
    on_tensor : called with the number of compared tensors and of all

    Raises
    ------
    CheckpointError : no such model, or the result of a run is no longer where it was written
    StoreError : a place cannot be read
    """
    one, other = (_open(name, store, storage_options) for name in (a, b))
    origin = _tensors(list_model(base, storage_options)) if base is not None else {}
    found, stored = _tensors(one.listing), _tensors(other.listing)
    shapes = {name: source.shape for name, source in stored.items()}
    names = match_names({name: source.shape for name, source in found.items()}, shapes).stored
    in_base = match_names(
        {name: source.shape for name, source in found.items()}, {name: source.shape for name, source in origin.items()}
    ).stored
    lacking = [name for name in names if name not in in_base] if base is not None else []
    if lacking:
        raise CheckpointError(
            f"--base {base}: has no tensor {lacking[0]!r}, nor {len(lacking) - 1} others of those that A and B have;"
            " compare without --base, or name their base"
        )
    reader = TensorReader(storage_options)
    rows: list[TensorDifference] = []
    for number, (name, source) in enumerate(found.items()):
        partner = stored.get(names.get(name, ""))
        if partner is None:
            rows.append(TensorDifference(name, "only in A", source.shape, None, source.dtype))
        else:
            rows.append(compare_tensor(name, source, partner, reader, origin.get(in_base.get(name, ""))))
        if on_tensor is not None:
            on_tensor(number + 1, len(found))
    matched = set(names.values())
    for name, source in stored.items():
        if name not in matched:
            rows.append(TensorDifference(name, "only in B", None, source.shape, None, source.dtype))
    both = [row for row in rows if row.status in ("equal", "differs")]
    layers: dict[str, list[TensorDifference]] = {}
    for row in both:
        layer = layer_of(row.name)
        layers.setdefault(f"{layer[0]}.{layer[1]}" if layer else row.name, []).append(row)
    return Comparison(
        one,
        other,
        tuple(rows),
        tuple(sum_groups(layers)),
        sum_groups({"all": both})[0] if both else None,
        *_compare_merges(one.manifest, other.manifest),
        base=base,
    )


def _open(name: str, store: Store | None, options: Mapping[str, Any] | None) -> ComparedModel:
    if store is not None and is_run_key(name):
        place, key = destination_of_run(name, store, options)
        manifest = _manifest_of(place, options)
        if manifest is None or manifest.run_key != key:
            raise CheckpointError(
                f"run {key[:12]}: its result was written to {place}, which no longer has it; merge again, with the same"
                " store that takes little time"
            )
        return ComparedModel(name, list_model(place, options), manifest)
    listing = list_model(name, options)
    return ComparedModel(name, listing, _manifest_of(listing.uri, options) if listing.kind == "full" else None)


def _manifest_of(place: str, options: Mapping[str, Any] | None) -> Manifest | None:
    folder = Store(place, options)
    return read_manifest(folder) if folder.exists(MANIFEST_NAME) else None


def _tensors(listing: ModelListing) -> Mapping[str, TensorSource]:
    """Return the tensors of a model with its adapter added, or the factors of an adapter alone."""
    if listing.kind == "adapter" and listing.adapter is not None:
        return listing.adapter.tensors
    return merge_adapter(listing, []).tensors


def _compare_merges(
    a: Manifest | None, b: Manifest | None
) -> tuple[tuple[tuple[str, int, int], ...], Mapping[str, list[object]], tuple[str, ...]]:
    """Return ranks, keys of the recipes and inputs that differ; nothing unless both are merges."""
    if a is None or b is None:
        return (), {}, ()
    ranks = {tensor.name: tensor.rank for tensor in b.tensors}
    pairs = [(tensor.name, tensor.rank, ranks.get(tensor.name)) for tensor in a.tensors]
    differing = tuple(
        (name, one, other) for name, one, other in pairs if one is not None and other is not None and one != other
    )
    keys = differing_keys([a.recipe, b.recipe])
    return differing, {path: keys[path] for path in by_importance(keys)}, tuple(_compare_inputs(a, b))


def _compare_inputs(a: Manifest, b: Manifest) -> list[str]:
    def models(manifest: Manifest) -> dict[str, ManifestModel]:
        base = {"base " + manifest.base.name: manifest.base} if manifest.base is not None else {}
        return base | {"expert " + model.name: model for model in manifest.experts}

    one, other = models(a), models(b)
    lines = [f"{name}: only in A" for name in one if name not in other]
    lines += [f"{name}: only in B" for name in other if name not in one]
    return lines + [
        f"{name}: its weights changed between the merges"
        for name in one
        if name in other and one[name].fingerprint != other[name].fingerprint
    ]
