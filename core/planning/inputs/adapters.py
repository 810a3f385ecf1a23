"""Read PEFT LoRA adapters: from config and factor names to the factors of each weight.

    base_model.model.<module>.lora_A.weight, .lora_B.weight        a linear layer, delta = scaling B A
    base_model.model.<module>.lora_embedding_A, .lora_embedding_B  an embedding, delta = scaling (B A)^T
    base_model.model.<module>.weight                               a whole tensor (modules_to_save)

Variants other than plain LoRA are refused by name, because merging their factors would give wrong weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from math import prod
from typing import cast

from ...errors import CheckpointError, ShapeError
from ...listing import AdapterListing, LoraSource, StackedLora, TensorSource
from .layouts.align import align_tensors
from .layouts.align_lora import align_lora
from .layouts.layout import Layout

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight$")
_EMBEDDING_FACTOR = re.compile(r"^(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?$")
_WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|base_layer)(?=\.)")

# Config option to the reason why it is refused and what to do.
_REFUSED_OPTIONS: Mapping[str, str] = {
    "use_dora": "DoRA rescales the base's weights, which is not a low-rank delta; merge it into its base first"
    " (PeftModel.merge_and_unload) and give the full model as expert",
    "lora_bias": "its lora_B has a bias; merge it into its base first and give the full model as expert",
    "layer_replication": "it replicates layers of its base; merge it into its base first",
    "use_qalora": "QALoRA pools the inputs; merge it into its base first",
    "trainable_token_indices": "it trains single tokens' embeddings; merge it into its base first",
    "target_parameters": "it adapts parameters inside modules (target_parameters); merge it into its base first",
    "alora_invocation_tokens": "an activated LoRA applies only after its invocation tokens; it cannot be merged",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA); merge it into its base first",
    "kasa_config": "KaSA scales directions of the base's weights; merge it into its base first",
    "arrow_config": "it routes between adapters token by token; it cannot be merged",
    "monteclora_config": "its factors are sampled (MonteCLoRA); merge it into its base first",
}
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})  # layers of GPT-2 and related models, stored as (in, out)
# Initializations that change the base, so that B A is not a delta of the base on disk.
_REFUSED_INITIALIZATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The changes of one adapter, by the weight names of its own model.

    lora : factors of adapted weights
    full : whole tensors (modules_to_save)
    """

    lora: Mapping[str, LoraSource | StackedLora]
    full: Mapping[str, TensorSource]

    def target_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape that each changed weight must have in the base, by weight name."""
        shapes = {name: source.shape for name, source in self.full.items()}
        shapes.update((name, lora.shape) for name, lora in self.lora.items())
        return shapes

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one shape with as many elements as are stored for each changed weight, by weight name."""
        shapes = {name: source.shape for name, source in self.full.items()}
        for name, lora in self.lora.items():
            shapes[name] = (sum(prod(source.shape) for source in lora.sources),)
        return shapes


def align_adapter(reference: Layout, adapter: Adapter, model: str) -> Adapter:
    """Return the adapter with the experts of mixtures in the reference's form, stacked or not.

    Raises
    ------
    as `align_lora`, `align_tensors`
    """
    full = align_tensors(reference, adapter.full, None, model).tensors
    return Adapter(align_lora(reference, adapter.lora, model), full)


def correct_orientation(
    lora: Mapping[str, LoraSource | StackedLora],
    shapes: Mapping[str, tuple[int, ...]],
    in_out: Set[str] = frozenset(),
) -> dict[str, LoraSource | StackedLora]:
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
    corrected: dict[str, LoraSource | StackedLora] = {}
    for name, factors in lora.items():
        if isinstance(factors, StackedLora):
            corrected[name] = factors
            continue
        is_square = factors.up.shape[0] == factors.down.shape[1]
        if is_square and name in in_out:
            corrected[name] = replace(factors, fan_in_fan_out=True)
        elif name in transposed or (is_square and _module_name(name) in modules):
            corrected[name] = replace(factors, fan_in_fan_out=not factors.fan_in_fan_out)
        else:
            corrected[name] = factors
    return corrected


def _module_name(name: str) -> str:
    """Return the last part of a module's name: "c_proj" for transformer.h.0.attn.c_proj.weight."""
    return name.removesuffix(".weight").rpartition(".")[2]


def read_adapter(listing: AdapterListing) -> Adapter:
    """Pair the factors of each weight and compute its scaling.

    Raises
    ------
    CheckpointError : not a LoRA, a LoRA variant other than a low-rank delta, or one factor of a pair is missing
    ShapeError : factors do not fit each other or the rank in the config
    """
    config = listing.config
    _refuse_variants(config, listing.uri)
    factors: dict[str, dict[str, TensorSource]] = {}
    embeddings: set[str] = set()
    full: dict[str, TensorSource] = {}
    adapter_names: set[str] = set()
    for stored_name, source in listing.tensors.items():
        name = stored_name.removeprefix(_PREFIX)
        if "lora_magnitude_vector" in name:
            raise CheckpointError(f"adapter {listing.uri}: tensor {stored_name}: {_REFUSED_OPTIONS['use_dora']}")
        match = _FACTOR.match(name) or _EMBEDDING_FACTOR.match(name)
        if match is not None:
            module = match["module"].removesuffix(".base_layer")
            factors.setdefault(module, {})[match["part"]] = source
            adapter_names.add(match["adapter"] or "")
            if "lora_embedding_" in name[len(match["module"]) :]:
                embeddings.add(module)
        elif ".lora_" in name:
            raise CheckpointError(
                f"adapter {listing.uri}: tensor {stored_name} is not a LoRA factor (lora_A.weight, lora_B.weight);"
                " merge the adapter into its base first and give the full model as expert"
            )
        elif ".original_module." not in name:
            full[read_weight_name(stored_name)] = source
    if len(adapter_names) > 1:
        raise CheckpointError(
            f"adapter {listing.uri} contains several adapters ({', '.join(sorted(adapter_names))}); save one per file"
        )
    if not factors and not full:
        raise CheckpointError(f"adapter {listing.uri} contains no LoRA factors; expected names such as X.lora_A.weight")
    scaling = _Scaling(config, listing.uri)
    # An embedding is stored as (tokens, features) and its factors multiply to (features, tokens), as in fan_in_fan_out.
    stored_in_out = bool(config.get("fan_in_fan_out"))
    lora = {
        f"{module}.weight": _pair(
            module, parts, scaling, transposed=stored_in_out or module in embeddings, uri=listing.uri
        )
        for module, parts in factors.items()
    }
    return Adapter(lora, full)


def read_weight_name(stored: str) -> str:
    """Return the weight's name in its own model for the stored name of a whole tensor."""
    return _WRAPPERS.sub("", stored.removeprefix(_PREFIX))


def _refuse_variants(config: Mapping[str, object], uri: str) -> None:
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()
    if kind != "LORA":
        raise CheckpointError(
            f"adapter {uri}: peft_type is {kind}, expected LORA; merge it into its base first"
            " (PeftModel.merge_and_unload) and give the full model as expert"
        )
    for option, advice in _REFUSED_OPTIONS.items():
        if config.get(option):
            raise CheckpointError(f"adapter {uri}: adapter_config.json sets {option}: {advice}")
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(_REFUSED_INITIALIZATIONS):
        raise CheckpointError(
            f"adapter {uri}: init_lora_weights is {initialization!r}, which changes the base it was trained on; convert"
            " it to a plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained) and give that"
        )


class _Scaling:
    """Scaling of each module: alpha / r, or alpha / sqrt(r) for rsLoRA.

    alpha and r come from alpha_pattern and rank_pattern where a pattern matches the module.
    """

    def __init__(self, config: Mapping[str, object], uri: str) -> None:
        self._uri = uri
        self._rank = self._number(config.get("r", 8), "r")
        self._alpha = self._number(config.get("lora_alpha", 8), "lora_alpha")
        self._ranks = self._patterns(config.get("rank_pattern"), "rank_pattern")
        self._alphas = self._patterns(config.get("alpha_pattern"), "alpha_pattern")
        self._square_root = bool(config.get("use_rslora"))

    def of(self, module: str) -> tuple[int, float]:
        """Return rank and scaling of a module."""
        rank = int(self._match(self._ranks, module, self._rank))
        alpha = self._match(self._alphas, module, self._alpha)
        return rank, alpha / (math.sqrt(rank) if self._square_root else rank)

    @staticmethod
    def _match(patterns: Mapping[re.Pattern[str], float], module: str, default: float) -> float:
        return next((value for pattern, value in patterns.items() if pattern.match(module)), default)

    def _patterns(self, raw: object, key: str) -> dict[re.Pattern[str], float]:
        if not isinstance(raw, Mapping):
            return {}
        compiled: dict[re.Pattern[str], float] = {}
        for pattern, value in cast("Mapping[object, object]", raw).items():
            try:
                # in PEFT, a regular expression for the end of the module's name, after a dot
                compiled[re.compile(rf"(.*\.)?({pattern})$")] = self._number(value, f"{key}[{pattern!r}]")
            except re.error as error:
                raise CheckpointError(
                    f"adapter {self._uri}: {key} has {pattern!r}, which is not a regular expression: {error}"
                ) from None
        return compiled

    def _number(self, value: object, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise CheckpointError(
                f"adapter {self._uri}: adapter_config.json has {key} = {value!r}; expected a positive number"
            )
        return float(value)


def _pair(
    module: str, parts: Mapping[str, TensorSource], scaling: _Scaling, *, transposed: bool, uri: str
) -> LoraSource:
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
    rank, scale = scaling.of(module)
    if up.shape[1] != rank or down.shape[0] != rank:
        raise ShapeError(
            f"adapter {uri}: {module} has lora_B {list(up.shape)} and lora_A {list(down.shape)},"
            f" adapter_config.json has rank {rank}; give the adapter_config.json that belongs to these weights"
        )
    return LoraSource(up, down, scale, transposed)
