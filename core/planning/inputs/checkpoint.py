"""One input checkpoint, asked by the reference's names: stored tensors, adapter factors, and what identifies both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ...errors import CheckpointError, RecipeError, ShapeError
from ...listing import LoraSource, ModelListing, TensorSource
from ..plan import ModelSummary
from .adapters import Adapter, delta_shape, oriented, read_adapter
from .matching import NameMap, match_names, tied_alternatives
from .quantized import weights_only

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a checkpoint gives to one tensor.

    full : None for an adapter on the base
    identity : for keys: which stored weights, without a place
    """

    full: TensorSource | None
    lora: LoraSource | None
    identity: str


def summarize(listing: ModelListing) -> ModelSummary:
    """One model as the plan keeps it."""
    adapter = listing.adapter
    num_tensors = len(listing.tensors) + (len(adapter.tensors) if adapter is not None else 0)
    return ModelSummary(listing.name, listing.uri, listing.fingerprint, num_tensors, listing.num_bytes, listing.kind)


def reference_tensors(listing: ModelListing, role: str) -> Mapping[str, TensorSource]:
    """The tensors of the model that gives the output its names.

    Raises
    ------
    CheckpointError : it is an adapter, holds nothing, or is quantised
    """
    if listing.kind == "adapter":
        raise CheckpointError(
            f"{listing.name} is a LoRA adapter and {role}; set base_model to the model that it was trained on"
        )
    tensors = weights_only(listing.tensors, listing.config, listing.name)
    if not tensors:
        raise CheckpointError(f"{listing.name} holds no tensors; expected a model")
    return tensors


@final
class Checkpoint:
    """An expert. Names are matched once, at the start; `matched` may be given by an expert with the same names.

    Raises
    ------
    CheckpointError : quantised, an adapter that targets what the base does not have
    RecipeError : an adapter without base_model
    ShapeError : an adapter's factors that do not fit the base
    """

    def __init__(self, listing: ModelListing, reference: Shapes, base: ModelListing | None, cache: MatchCache) -> None:
        self.listing = listing
        self.fingerprint = listing.fingerprint
        self.on_base = listing.kind == "adapter" or (
            listing.kind == "full+adapter" and base is not None and listing.uri == base.uri
        )
        if listing.kind == "adapter" and base is None:
            raise RecipeError(f"{listing.name} is a LoRA adapter; set base_model to the model that it was trained on")
        self.warnings: list[str] = []
        self._tensors: Mapping[str, TensorSource] = {}
        self._names: NameMap | None = None
        self._used: set[str] = set()
        if not self.on_base:
            self._tensors = weights_only(listing.tensors, listing.config, listing.name)
            self._names = cache.match(reference, self._tensors)
            if self._names.replacements:
                self.warnings.append(f"{listing.name}: {self._names.describe()}")
        self.adapter_names: Mapping[str, str] = {}  # reference name to the adapter's own, of the weights it touches
        self._lora: Mapping[str, LoraSource] = {}
        self._saved: Mapping[str, TensorSource] = {}
        if listing.adapter is not None:
            self._attach_adapter(read_adapter(listing.adapter), reference)

    def _attach_adapter(self, adapter: Adapter, reference: Shapes) -> None:
        targets = adapter.target_shapes()
        names = match_names(reference, targets)
        own = {stored: name for name, stored in names.stored.items()}
        unknown = [name for name in targets if name not in own]
        lost = [name for name in unknown if name in adapter.lora]
        if lost:
            raise CheckpointError(
                f"{self.listing.name}: adapter targets {lost[0]}, which the base does not have"
                f" ({len(lost)} of {len(adapter.lora)} targets); set base_model to the model that it was trained on"
            )
        if unknown:
            self.warnings.append(
                f"{self.listing.name}: {len(unknown)} tensors of the adapter are not in the base and are left out,"
                f" the first {unknown[0]}"
            )
        lora = oriented(adapter.lora, {stored: reference[name] for name, stored in names.stored.items()})
        for name, stored in names.stored.items():
            if stored in lora and delta_shape(lora[stored]) != reference[name]:
                raise ShapeError(
                    f"{name}: {self.listing.name} adapts a weight of {list(targets[stored])}, the base has"
                    f" {list(reference[name])}; set base_model to the model that it was trained on"
                )
        self._lora = {own[stored]: factors for stored, factors in lora.items()}
        self._saved = {own[stored]: source for stored, source in adapter.full.items() if stored in own}
        self.adapter_names = names.stored

    @property
    def name(self) -> str:
        return self.listing.name

    @property
    def stores_in_out(self) -> bool:
        """True when its adapter says fan_in_fan_out."""
        return self.listing.adapter is not None and bool(self.listing.adapter.config.get("fan_in_fan_out"))

    def contribution(self, name: str, reference: TensorSource) -> Contribution | None:
        """What it gives to the tensor that the reference calls `name`; None when it has nothing of that name."""
        lora = self._lora.get(name)
        saved = self._saved.get(name)
        if saved is not None:
            return Contribution(saved, lora, f"{self.fingerprint}/saved/{name}")
        if self.on_base:
            # The base's own bytes are in every key already: an untouched tensor needs no identity of its own.
            return Contribution(None, lora, f"{self.fingerprint}/lora/{name}" if lora is not None else "base")
        assert self._names is not None
        stored = self._names.find(name, self._tensors)
        if stored is not None:
            self._used.add(stored)
            return Contribution(self._tensors[stored], lora, f"{self.fingerprint}/{stored}")
        tied = tied_alternatives(name, reference.shape, self._tensors) if self._may_be_tied(name) else None
        if tied is not None:
            return Contribution(self._tensors[tied], lora, f"{self.fingerprint}/{tied}")
        return None

    def _may_be_tied(self, name: str) -> bool:
        config = self.listing.config or {}
        text = config.get("text_config")
        flags = [part.get("tie_word_embeddings") for part in (config, text) if isinstance(part, Mapping)]
        return "bias" in name or False not in flags or True in flags

    def extra_names(self) -> list[str]:
        """Stored names that the reference does not have and that no tensor of the output was made of."""
        if self._names is None or len(self._names.stored) == len(self._tensors):
            return []
        used = self._used.union(self._names.stored.values())
        return [name for name in self._tensors if name not in used]


class MatchCache:
    """Name matches by the names themselves: the experts of one base have one set of names."""

    def __init__(self) -> None:
        self._known: dict[frozenset[tuple[str, tuple[int, ...]]], NameMap] = {}

    def match(self, reference: Shapes, tensors: Mapping[str, TensorSource]) -> NameMap:
        shapes = {name: source.shape for name, source in tensors.items()}
        key = frozenset(shapes.items())
        if key not in self._known:
            self._known[key] = match_names(reference, shapes)
        return self._known[key]
