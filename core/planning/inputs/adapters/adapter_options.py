"""The options of a PEFT adapter: which change the delta in a way that is not read, and the scaling of each module."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import cast

from ....errors import CheckpointError
from .module_patterns import ModulePatterns

_LONGEST_SHOWN = 60

# Config option to the reason why it is refused and what to do.
REFUSED_OPTIONS: Mapping[str, str] = {
    "use_dora": "DoRA rescales the base's weights, which is not a low-rank delta; merge it into its base first"
    " (PeftModel.merge_and_unload) and give the full model as expert",
    "lora_bias": "its lora_B has a bias; merge it into its base first and give the full model as expert",
    "layer_replication": "it replicates layers of its base; merge it into its base first",
    "use_qalora": "QALoRA pools the inputs; merge it into its base first",
    "trainable_token_indices": "it trains single tokens' embeddings; merge it into its base first",
    "alora_invocation_tokens": "an activated LoRA applies only after its invocation tokens; it cannot be merged",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA); merge it into its base first",
    "kasa_config": "KaSA scales directions of the base's weights; merge it into its base first",
    "arrow_config": "it routes between adapters token by token; it cannot be merged",
    "monteclora_config": "its factors are sampled (MonteCLoRA); merge it into its base first",
}
# Options that change how the factors are initialized or trained, not what they mean.
_HARMLESS_CONFIGS = frozenset(
    {
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
        "runtime_config",
        "velora_config",
        "megatron_config",
        "model_config",
        "base_model_config",
        "quantization_config",
        "training_config",
    }
)
# Initializations of factors alone. All others change the base, so that B A is not a delta of the base on disk.
_INITIALIZATIONS = frozenset({"gaussian", "eva", "orthogonal", "mica", "default", "true", "false", "none"})


def refuse_variants(config: Mapping[str, object], uri: str) -> None:
    """Check that an adapter is a LoRA whose delta is scaling * B A.

    An option that this version does not know is refused where its name says that it switches a variant on.

    Raises
    ------
    CheckpointError : another method of PEFT, or an option that changes the delta; names it and says what to do
    """
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()
    if kind != "LORA":
        raise CheckpointError(
            f"adapter {uri}: peft_type is {kind}, expected LORA; merge it into its base first"
            " (PeftModel.merge_and_unload) and give the full model as expert"
        )
    for option, advice in REFUSED_OPTIONS.items():
        if config.get(option):
            raise CheckpointError(f"adapter {uri}: adapter_config.json sets {option}: {advice}")
    for option, value in config.items():
        is_switch = option.startswith("use_") and "lora" in option and value is True and option != "use_rslora"
        is_variant = option.endswith("_config") and isinstance(value, Mapping) and option not in _HARMLESS_CONFIGS
        if value and (is_switch or is_variant):
            raise CheckpointError(
                f"adapter {uri}: adapter_config.json sets {option}, a variant of LoRA that is not known here; merge it"
                " into its base first (PeftModel.merge_and_unload) and give the full model as expert"
            )
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower() not in _INITIALIZATIONS:
        raise CheckpointError(
            f"adapter {uri}: init_lora_weights is {initialization!r}, which changes the base it was trained on; convert"
            " it to a plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained) and give that"
        )


class Scaling:
    """Scaling of each module: alpha / r, or alpha / sqrt(r) for rsLoRA.

    alpha and r come from alpha_pattern and rank_pattern where a pattern matches the module.

    Raises
    ------
    CheckpointError : a number or a pattern of the config is invalid
    """

    def __init__(self, config: Mapping[str, object], uri: str) -> None:
        self._uri = uri
        self._rank = self._number(config.get("r", 8), "r")
        self._alpha = self._number(config.get("lora_alpha", 8), "lora_alpha")
        self._ranks = self._patterns(config.get("rank_pattern"), "rank_pattern")
        self._alphas = self._patterns(config.get("alpha_pattern"), "alpha_pattern")
        self._square_root = bool(config.get("use_rslora"))

    def of(self, module: str) -> tuple[int, float]:
        """Return rank and scaling of a module, or of a parameter that target_parameters names."""
        rank = int(self._match(self._ranks, module, self._rank))
        if rank < 1:
            raise CheckpointError(f"adapter {self._uri}: the rank of {module} is less than 1; expected a whole number")
        alpha = self._match(self._alphas, module, self._alpha)
        return rank, alpha / (math.sqrt(rank) if self._square_root else rank)

    @staticmethod
    def _match(patterns: ModulePatterns, module: str, default: float) -> float:
        found = patterns.find(module)
        return default if found is None else found

    def _patterns(self, raw: object, key: str) -> ModulePatterns:
        if not isinstance(raw, Mapping):
            return ModulePatterns({})
        values = {
            str(pattern): self._number(value, f"{key}[{str(pattern)[:_LONGEST_SHOWN]!r}]")
            for pattern, value in cast("Mapping[object, object]", raw).items()
        }
        try:
            return ModulePatterns(values)
        except ValueError as error:
            raise CheckpointError(f"adapter {self._uri}: {key} {error}") from None

    def _number(self, value: object, key: str) -> float:
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                number = float(value)
        if not math.isfinite(number) or number <= 0:
            shown = repr(value) if len(repr(value)) <= _LONGEST_SHOWN else repr(value)[:_LONGEST_SHOWN] + "..."
            raise CheckpointError(
                f"adapter {self._uri}: adapter_config.json has {key} = {shown}; expected a positive number"
            )
        return number
