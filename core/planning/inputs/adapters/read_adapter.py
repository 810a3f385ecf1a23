"""Read LoRA adapters of PEFT: from config and factor names to the factors of each weight.

    base_model.model.<module>.lora_A.weight, .lora_B.weight        a linear layer, delta = scaling B A
    base_model.model.<module>.lora_embedding_A, .lora_embedding_B  an embedding, delta = scaling (B A)^T
    base_model.model.<module>.weight                               a whole tensor (modules_to_save, bias)

Variants other than plain LoRA are refused by name, because merging their factors would give wrong weights. Adapters of
MLX are read in `mlx_adapters.py`, the experts of mixtures in `adapter_stacks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from math import prod

from ....errors import CheckpointError, ShapeError
from ....formats.dtypes import DTYPES
from ....listing import AdapterListing, LoraSource, StackedLora, TensorSource
from ..layouts.align import align_tensors
from ..layouts.align_lora import align_lora
from ..layouts.layout import Layout
from ..packed import find_packed_weight
from .adapter_options import REFUSED_OPTIONS, Scaling, refuse_variants
from .adapter_stacks import ModuleFactors, find_parameters, resolve_parameters
from .base_names import BaseNames
from .mlx_adapters import is_mlx, read_mlx

Lora = LoraSource | StackedLora
Shapes = Mapping[str, tuple[int, ...]]

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight$")
_EMBEDDING_FACTOR = re.compile(r"^(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?$")
_WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|base_layer)(?=\.)")
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})  # layers of GPT-2 and related models, stored as (in, out)
# Names of LoRA factors of PEFT, MLX, diffusers, kohya and LyCORIS, for adapters that are given as models.
_ANY_FACTOR = re.compile(
    r"(^|[._])(lora_([abAB]|up|down|embedding_[AB]|magnitude_vector)|lora\.(up|down)|hada_w[12]\w*|lokr_w[12]\w*)([._]|$)"
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The changes of one adapter, by the weight names of its own model.

    lora : factors of adapted weights
    full : whole tensors (modules_to_save)
    """

    lora: Mapping[str, Lora]
    full: Mapping[str, TensorSource]

    def target_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape that each changed weight must have in the base, by weight name."""
        shapes = {name: source.shape for name, source in self.full.items()}
        shapes.update((name, lora.shape) for name, lora in self.lora.items())
        return shapes

    def stored_sizes(self) -> dict[str, int]:
        """Return the number of elements that are stored for each changed weight, by weight name."""
        sizes = {name: prod(source.shape) for name, source in self.full.items()}
        sizes.update((name, sum(prod(one.shape) for one in lora.sources)) for name, lora in self.lora.items())
        return sizes


def align_adapter(reference: Layout, adapter: Adapter, model: str) -> Adapter:
    """Return the adapter with the experts of mixtures in the reference's form, stacked or not.

    Raises
    ------
    as `align_lora`, `align_tensors`
    """
    full = align_tensors(reference, adapter.full, None, model).tensors
    return Adapter(align_lora(reference, adapter.lora, model), full)


def find_factor(names: Iterable[str]) -> str | None:
    """Return the first name that is a LoRA factor of some library, None where there is none."""
    return next((name for name in names if _ANY_FACTOR.search(name)), None)


def unwrapped_name(name: str) -> str:
    """Return the name of a weight without the parts that PEFT adds: embed_tokens.weight for embed_tokens.base_layer."""
    return _WRAPPERS.sub("", name.removeprefix(_PREFIX))


def correct_orientation(lora: Mapping[str, Lora], shapes: Shapes, in_out: Set[str] = frozenset()) -> dict[str, Lora]:
    """Return the factors with `fan_in_fan_out` set to how each weight is stored.

    PEFT keeps one option for all modules and sets it for the last module it processed. With GPT-2's Conv1D layers,
    stored as (in, out), and a Linear lm_head, either value occurs. The shape of the weight decides; for a square
    weight, the layout of the base or the other weights of the same module name decide.

    Parameters
    ----------
    shapes : shapes of the base's weights, by the adapter's names
    in_out : names of the weights that the base stores (in, out)
    """
    transposed = {
        name
        for name, factors in lora.items()
        if isinstance(factors, LoraSource) and factors.shape != shapes[name] and factors.shape[::-1] == shapes[name]
    }
    modules = {_module_name(name) for name in transposed}
    if modules & _CONV1D:
        modules |= _CONV1D
    corrected = dict(lora)
    for name, factors in lora.items():
        if isinstance(factors, StackedLora):
            continue
        is_square = factors.up.shape[0] == factors.down.shape[1]
        if is_square and name in in_out:
            corrected[name] = replace(factors, fan_in_fan_out=True)
        elif name in transposed or (is_square and _module_name(name) in modules):
            corrected[name] = replace(factors, fan_in_fan_out=not factors.fan_in_fan_out)
    return corrected


def _module_name(name: str) -> str:
    """Return the last part of a module's name: "c_proj" for transformer.h.0.attn.c_proj.weight."""
    return name.removesuffix(".weight").rpartition(".")[2]


def read_adapter(listing: AdapterListing, reference: Shapes | None = None) -> Adapter:
    """Pair the factors of each weight and compute its scaling.

    Parameters
    ----------
    reference : shapes of the base's tensors by name. They tell how a mixture stores its experts; without them an
        adapter of stacked experts (target_parameters) is refused.

    Raises
    ------
    CheckpointError : not a LoRA, a LoRA variant other than a low-rank delta, or one factor of a pair is missing
    ShapeError : factors do not fit each other, the rank in the config, or the base's experts
    """
    _check_dtypes(listing)
    base = BaseNames(reference or {})
    if is_mlx(listing):
        return Adapter(*read_mlx(listing, base))
    config = listing.config
    refuse_variants(config, listing.uri)
    modules: dict[str, ModuleFactors] = {}
    full: dict[str, TensorSource] = {}
    adapter_names: set[str] = set()
    for stored_name, source in listing.tensors.items():
        name = stored_name.removeprefix(_PREFIX)
        if "lora_magnitude_vector" in name:
            raise CheckpointError(f"adapter {listing.uri}: tensor {stored_name}: {REFUSED_OPTIONS['use_dora']}")
        match = _FACTOR.match(name) or _EMBEDDING_FACTOR.match(name)
        if match is not None:
            own = modules.setdefault(_WRAPPERS.sub("", f"{match['module']}.")[:-1], ModuleFactors())
            own.levels.setdefault(match["module"].count(".base_layer"), {})[match["part"]] = source
            own.is_embedding |= "lora_embedding_" in name[len(match["module"]) :]
            adapter_names.add(match["adapter"] or "")
        elif ".lora_" in name:
            raise CheckpointError(
                f"adapter {listing.uri}: tensor {stored_name} is not a LoRA factor (lora_A.weight, lora_B.weight);"
                " merge the adapter into its base first and give the full model as expert"
            )
        elif ".original_module." not in name:
            full[unwrapped_name(stored_name)] = source
    if len(adapter_names) > 1:
        raise CheckpointError(
            f"adapter {listing.uri} contains several adapters ({', '.join(sorted(adapter_names))}); save one per file"
        )
    if not modules and not full:
        raise CheckpointError(f"adapter {listing.uri} contains no LoRA factors; expected names such as X.lora_A.weight")
    scaling = Scaling(config, listing.uri)
    lora: dict[str, Lora] = {}
    # An embedding is stored as (tokens, features) and its factors multiply to (features, tokens), as in fan_in_fan_out.
    stored_in_out = bool(config.get("fan_in_fan_out"))
    for module, own in modules.items():
        for parts in own.levels.values():
            _check_pair(module, parts, listing.uri)
        parameters = find_parameters(module, config, base)
        if parameters:
            lora |= resolve_parameters(module, own, parameters, scaling, listing.uri)
            continue
        if len(own.levels) > 1:
            raise CheckpointError(
                f"adapter {listing.uri}: {module} has factors of {len(own.levels)} parameters (target_parameters) that"
                " the base does not have; set base_model to the model that it was trained on"
            )
        level = next(iter(own.levels.values()))
        factors = _pair(module, level, scaling, listing.uri)
        is_transposed = stored_in_out or own.is_embedding
        lora[f"{module}.weight"] = replace(factors, fan_in_fan_out=is_transposed, is_embedding=own.is_embedding)
    return Adapter(lora, full)


def _check_dtypes(listing: AdapterListing) -> None:
    """Check that all tensors of an adapter are plain floats."""
    packed = find_packed_weight(listing.tensors)
    if packed is not None:
        raise CheckpointError(f"adapter {listing.uri}: {packed}; give the unquantized adapter")
    for name, source in listing.tensors.items():
        if DTYPES[source.dtype].kind != "float" and find_factor([name]):
            raise CheckpointError(
                f"adapter {listing.uri}: {name} is {source.dtype}, expected float32, bfloat16 or float16"
            )


def _check_pair(module: str, parts: Mapping[str, TensorSource], uri: str) -> None:
    if len(parts) != 2:
        present = next(iter(parts))
        raise CheckpointError(
            f"adapter {uri}: {module} has lora_{present} and no lora_{'B' if present == 'A' else 'A'}; the file is"
            " incomplete"
        )
    up, down = parts["B"], parts["A"]
    if len(up.shape) != 2 or len(down.shape) != 2:
        raise ShapeError(
            f"adapter {uri}: {module} has factors {list(up.shape)} and {list(down.shape)}; only matrices are supported"
            " (a LoRA on a convolution has to be merged into its base first)"
        )


def _pair(module: str, parts: Mapping[str, TensorSource], scaling: Scaling, uri: str) -> LoraSource:
    up, down = parts["B"], parts["A"]
    rank, scale = scaling.of(module)
    if up.shape[1] != rank or down.shape[0] != rank:
        raise ShapeError(
            f"adapter {uri}: {module} has lora_B {list(up.shape)} and lora_A {list(down.shape)},"
            f" adapter_config.json has rank {rank}; give the adapter_config.json that belongs to these weights"
        )
    return LoraSource(up, down, scale)
