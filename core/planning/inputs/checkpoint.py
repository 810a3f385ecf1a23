"""One input checkpoint under the reference's names: stored tensors, adapter factors, and their identity in keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast, final

from ...errors import CheckpointError, RecipeError, ShapeError
from ...formats.file_names import ADAPTER_CONFIG_NAME
from ...listing import LoraSource, ModelListing, StackedLora, TensorSource
from ..plan import Arrival, ModelSummary
from .adapters.read_adapter import (
    Adapter,
    align_adapter,
    correct_orientation,
    find_factor,
    read_adapter,
    unwrapped_name,
)
from .layouts.align import align_tensors
from .layouts.layout import Layout
from .names.matching import NameMap, match_names
from .names.token_matrices import ties_unstored_head
from .names.wrappers import has_layers
from .quantized import select_weights

Shapes = Mapping[str, tuple[int, ...]]

UNCHANGED = "base"  # identity of a tensor that equals the base's


@dataclass(frozen=True, slots=True)
class Contribution:
    """The data of one checkpoint for one tensor.

    full : the stored tensor; None for an adapter on the base
    lora : adapter factors to add
    identity : identifies the data in keys, independent of its location; `UNCHANGED` if an adapter does not touch it
    """

    full: TensorSource | None
    lora: LoraSource | StackedLora | None
    identity: str


def summarize(listing: ModelListing, arrival: Arrival | None = None) -> ModelSummary:
    """Return the description of a model that the plan contains."""
    adapter = listing.adapter
    num_tensors = len(listing.tensors) + (len(adapter.tensors) if adapter is not None else 0)
    return ModelSummary(
        listing.name, listing.uri, listing.fingerprint, num_tensors, listing.num_bytes, listing.kind, arrival
    )


def reference_tensors(listing: ModelListing, role: str) -> Mapping[str, TensorSource]:
    """Return the tensors of the model that gives the output its names.

    Parameters
    ----------
    role : why this model gives the names, for the error about an adapter

    Raises
    ------
    CheckpointError : the model is an adapter, has no tensors, or is quantized
    """
    if listing.kind == "adapter":
        raise CheckpointError(
            f"{listing.name} is a LoRA adapter and {role}; set base_model to the model that it was trained on"
        )
    tensors = select_weights(listing.tensors, listing.config, listing.name)
    if not tensors:
        raise CheckpointError(f"{listing.name} holds no tensors; expected a model")
    if all(find_factor([name]) for name, source in tensors.items() if len(source.shape) > 1):
        _refuse_factors(list(tensors), listing.name)
    if listing.adapter is None:
        return tensors
    shapes = {name: source.shape for name, source in tensors.items()}
    saved = read_adapter(listing.adapter, shapes).full
    names = match_names(shapes, {name: source.shape for name, source in saved.items()}).stored
    return {**tensors, **{name: saved[stored] for name, stored in names.items()}}


def _refuse_factors(names: Sequence[str], model: str) -> None:
    """Check that a full model holds no LoRA factors, which would be left out.

    Parameters
    ----------
    names : tensors that the model whose names the output has does not have
    """
    factor = find_factor(names)
    if factor is not None:
        raise CheckpointError(
            f"{model}: {factor} is a LoRA factor, expected a merged model, or a PEFT or MLX adapter with"
            f" {ADAPTER_CONFIG_NAME}; merge it into its base first (PEFT: merge_and_unload, diffusers: fuse_lora) and"
            " give the full model"
        )


def _adapted_module(name: str, reference: Shapes) -> str | None:
    """Return the module of the base to which an unknown tensor of an adapter belongs, None where there is none.

    PEFT's methods store their tensors below the module that they change: `q_proj.vera_lambda_b`.
    """
    module = name
    for _ in range(2):
        module = module.rpartition(".")[0]
        if module and any(f".{other}".endswith(f".{module}.weight") for other in reference):
            return module
    return None


@final
class Checkpoint:
    """One expert. Its names are matched to the reference's at construction.

    on_base : the expert is an adapter on the base itself, without tensors of its own
    in_out : weights that the base stores (in, out), as the adapter's factors show; with its embeddings
    adapter_names : the adapter's name of each weight that it changes, by reference name
    adapter_extra : shapes of the adapter's weights that the reference does not have
    warnings : about names that were matched by prefix or do not occur in the base

    Parameters
    ----------
    reference : the layout of the reference, with the shapes of its tensors by name
    cache : matches of the other experts, most of which have the same names

    Raises
    ------
    CheckpointError : the model is quantized, or its adapter targets weights that the base does not have
    RecipeError : an adapter without base_model
    ShapeError : the adapter's factors do not fit the base
    """

    def __init__(self, listing: ModelListing, reference: Layout, base: ModelListing | None, cache: MatchCache) -> None:
        self.listing = listing
        self.fingerprint = listing.fingerprint
        self.on_base = listing.kind == "adapter" or (
            listing.kind == "full+adapter" and base is not None and base.kind == "full" and listing.uri == base.uri
        )
        if listing.kind == "adapter" and base is None:
            raise RecipeError(f"{listing.name} is a LoRA adapter; set base_model to the model that it was trained on")
        self.warnings: list[str] = []
        self.adapter_names: Mapping[str, str] = {}
        self.in_out: frozenset[str] = frozenset()
        self._tensors: Mapping[str, TensorSource] = {}
        self._names: NameMap | None = None
        self._used: set[str] = set()
        self._derived: Mapping[str, str] = {}  # identities of tensors that are views on the stored ones
        self._lora: Mapping[str, LoraSource | StackedLora] = {}
        self._aliases: dict[str, str] = {}  # stored names of tied weights by reference name
        self.adapter_extra: Mapping[str, tuple[int, ...]] = {}
        self._adapter_sizes: Mapping[str, int] = {}
        self._saved: Mapping[str, TensorSource] = {}  # whole tensors in the adapter (modules_to_save)
        if not self.on_base:
            stored = select_weights(listing.tensors, listing.config, listing.name)
            aligned = align_tensors(reference, stored, listing.config, listing.name)
            self._tensors, self._derived = aligned.tensors, aligned.derived
            if aligned.derived:
                self.warnings.append(f"{listing.name}: stores the experts of mixtures in another form than the base")
            self._names = self._match(lambda: cache.match(reference.shapes, self._tensors))
            _refuse_factors(self.extra_names(), listing.name)
            if self._names.replacements:
                self.warnings.append(f"{listing.name}: {self._names.describe()}")
        if listing.adapter is not None:
            self._attach_adapter(read_adapter(listing.adapter, reference.shapes), reference, base)
            if listing.adapter.unused_files:
                self.warnings.append(
                    f"{listing.name}: {', '.join(listing.adapter.unused_files)} beside the adapter is not part of it"
                    " and is not used"
                )

    def _match(self, match: Callable[[], NameMap]) -> NameMap:
        try:
            return match()
        except CheckpointError as error:
            raise CheckpointError(f"{self.listing.name}: {error}") from None

    def _attach_adapter(self, adapter: Adapter, layout: Layout, base: ModelListing | None) -> None:
        reference = layout.shapes
        adapter = align_adapter(layout, adapter, self.listing.name)
        targets = adapter.target_shapes()
        names = self._match(lambda: match_names(reference, targets))
        reference_names = {stored: name for name, stored in names.stored.items()}
        unknown = [name for name in targets if name not in reference_names]
        unknown_factors = [name for name in unknown if name in adapter.lora]
        if unknown_factors and base is not None and ties_unstored_head(base.config):
            tied = [name for name in unknown_factors if not has_layers(name)]
            if len(tied) == len(unknown_factors):
                raise CheckpointError(
                    f"{self.listing.name}: adapter targets {tied[0]}, which {base.name} does not store: it ties its"
                    " output projection to its embedding, which the adapter leaves as it is. Give a base that stores"
                    " both (tie_word_embeddings: false)"
                )
        if unknown_factors:
            raise CheckpointError(
                f"{self.listing.name}: adapter targets {unknown_factors[0]}, which the base does not have"
                f" ({len(unknown_factors)} of {len(adapter.lora)} targets); set base_model to the model that it was"
                " trained on"
            )
        for name in unknown:
            module = _adapted_module(name, reference)
            if module is not None:
                raise CheckpointError(
                    f"{self.listing.name}: adapter has {name}, which is no LoRA factor and no tensor of the base, for"
                    f" {module}; merge the adapter into its base first and give the full model as expert"
                )
        self.adapter_extra = {name: targets[name] for name in unknown}
        self._adapter_sizes = adapter.stored_sizes()
        if unknown:
            self.warnings.append(
                f"{self.listing.name}: {len(unknown)} tensors of the adapter are not in the base and are left out,"
                f" the first {unknown[0]}"
            )
        stored_shapes = {stored: reference[name] for name, stored in names.stored.items()}
        in_out = frozenset(stored for name, stored in names.stored.items() if layout.in_out(name))
        lora = correct_orientation(adapter.lora, stored_shapes, in_out)
        for name, stored in names.stored.items():
            if stored in lora and lora[stored].shape != reference[name]:
                raise ShapeError(
                    f"{name}: {self.listing.name} adapts a weight of {list(targets[stored])}, the base has"
                    f" {list(reference[name])}; set base_model to the model that it was trained on"
                )
        self._lora = {reference_names[stored]: factors for stored, factors in lora.items()}
        self._saved = {
            reference_names[name]: source for name, source in adapter.full.items() if name in reference_names
        }
        self.adapter_names = names.stored
        self.in_out = frozenset(
            name for name, one in self._lora.items() if isinstance(one, LoraSource) and one.fan_in_fan_out
        )

    @property
    def name(self) -> str:
        """The model's name in the recipe."""
        return self.listing.name

    @property
    def sets_fan_in_fan_out(self) -> bool:
        """Whether the adapter's config sets fan_in_fan_out: weights stored as (in, out)."""
        return self.listing.adapter is not None and bool(self.listing.adapter.config.get("fan_in_fan_out"))

    def contribution(self, name: str, reference: TensorSource) -> Contribution | None:
        """Return the data for the tensor with the reference name `name`; None when the checkpoint lacks it."""
        lora = self._lora.get(name)
        saved = self._saved.get(name)
        if saved is not None:
            return Contribution(saved, lora, f"{self.fingerprint}/saved/{name}")
        if self.on_base:
            # Keys contain the base's identity anyway, so an unchanged tensor needs none of its own.
            return Contribution(None, lora, f"{self.fingerprint}/lora/{name}" if lora is not None else UNCHANGED)
        assert self._names is not None
        stored = self._names.find(name, self._tensors)
        if stored is not None:
            self._used.add(stored)
            identity = f"{self.fingerprint}/{stored}" + (f"#{self._derived[stored]}" if stored in self._derived else "")
            return Contribution(self._tensors[stored], lora, identity)
        tied = self._aliases.get(name)
        if tied is not None:
            return Contribution(self._tensors[tied], lora, f"{self.fingerprint}/{tied}")
        return None

    @property
    def tensors(self) -> Mapping[str, TensorSource]:
        """The stored tensors; empty for an adapter on the base."""
        return self._tensors

    @property
    def names(self) -> Mapping[str, str]:
        """Stored names by reference name; empty for an adapter on the base."""
        return self._names.stored if self._names is not None else {}

    def add_alias(self, name: str, stored: str) -> None:
        """Use a stored weight for a reference name that is tied to it."""
        self._aliases[name] = stored
        self._used.add(stored)

    def use(self, stored: str) -> None:
        """Count a stored tensor as one that has a place, because it equals another."""
        self._used.add(stored)

    def is_equal(self, one: str, other: str) -> bool:
        """Return whether two stored tensors have equal bytes."""
        equal = self.listing.equal_names
        return equal.get(one, one) == equal.get(other, other)

    @property
    def adapted(self) -> frozenset[str]:
        """Reference names of the weights that the adapter changes."""
        return frozenset((*self._lora, *self._saved))

    def saves_equal(self, one: str, other: str) -> bool:
        """Return whether the adapter stores two whole weights, and the same."""
        return one in self._saved and other in self._saved and self._equal_in_adapter(one, self.adapter_names[other])

    def changes_tied_head(self, name: str) -> bool:
        """Return whether the adapter's change of an embedding is one of the output projection that is tied to it.

        It is where PEFT ties the adapters, where the adapter stores the projection with the same values, and where the
        embedding is stored because tokens were added, and not as a copy that was trained (modules_to_save).
        """
        adapter = self.listing.adapter
        if adapter is None or adapter.config.get("ensure_weight_tying"):
            return True
        if name in self._lora:
            return False
        heads = [other for other in self.adapter_extra if self._equal_in_adapter(name, other)]
        saved = adapter.config.get("modules_to_save")
        module = name.removesuffix(".weight").rpartition(".")[2]
        copies = cast("list[object]", saved) if isinstance(saved, list) else []
        is_copy = module in (str(item).rpartition(".")[2] for item in copies)
        return bool(heads) or not is_copy

    def stores_other_head(self, name: str, rows: int) -> bool:
        """Return whether the adapter stores an output projection, for an embedding of `rows` rows, with own values."""
        heads = [other for other, shape in self.adapter_extra.items() if len(shape) == 2 and shape[0] * 2 > rows]
        return any(name not in self._saved or not self._equal_in_adapter(name, head) for head in heads)

    def _equal_in_adapter(self, name: str, other: str) -> bool:
        """Return whether a changed weight, by reference name, equals another of the adapter, by its own name."""
        adapter = self.listing.adapter
        assert adapter is not None
        names = {unwrapped_name(stored): stored for stored in adapter.tensors}
        one, two = names.get(self.adapter_names[name]), names.get(other)
        equal = adapter.equal_names
        return one is not None and two is not None and equal.get(one, one) == equal.get(two, two)

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of parameters by name: stored tensors, and weights that the adapter changes."""
        own = {name: prod(source.shape) for name, source in self._tensors.items()}
        return own | {f"adapter: {name}": size for name, size in self._adapter_sizes.items()}

    def left_out(self) -> list[str]:
        """Return the names of `parameter_counts` that have no place in the output."""
        return [*self.extra_names(), *(f"adapter: {name}" for name in self.adapter_extra)]

    def extra_names(self) -> list[str]:
        """Return the stored names that the reference does not have and that no output tensor uses."""
        if self._names is None or len(self._names.stored) == len(self._tensors):
            return []
        used = self._used.union(self._names.stored.values())
        return [name for name in self._tensors if name not in used]


class MatchCache:
    """Name maps by names and shapes: experts of one base usually have the same."""

    def __init__(self) -> None:
        self._matched: dict[frozenset[tuple[str, tuple[int, ...]]], NameMap] = {}

    def match(self, reference: Shapes, tensors: Mapping[str, TensorSource]) -> NameMap:
        """Return `match_names` of the tensors, computed once per set of names and shapes."""
        shapes = {name: source.shape for name, source in tensors.items()}
        key = frozenset(shapes.items())
        if key not in self._matched:
            self._matched[key] = match_names(reference, shapes)
        return self._matched[key]
