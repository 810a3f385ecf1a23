"""The entries of a config.json that change what the same weights compute, in a form that two versions of it share.

Every entry counts except those that are known not to matter: names, dtypes, token ids, dropout, training and generation
settings, limits of the context, labels of a task. Positions are compared as one group, because versions of
Transformers store them as `rope_theta` and `rope_scaling`, or as `rope_parameters`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

_IGNORED = re.compile(
    r"_.*|architectures|model_type|auto_map|.*(name|version|path|dtype|repo|url|commit|license|author).*"  # identity
    r"|.*(drop|init|loss|jitter|seed|label|quant|unsloth|checkpointing|flash|implementation|kernel_impl).*"
    r"|.*(bos|eos|pad|sep|cls|unk|mask|start|end|image|video|audio|token)_?(token)?_?(id|ids|index|idx|token)s?"
    r"|(bf16|fp16|fp32|float16|use_bfloat16|torchscript|pretraining_tp|slow_but_exact|pruned_heads|prefix)"
    r"|.*(parallel_size|tensor_parallel|sequence_parallel|world_size).*|tf_legacy.*|chunk_size_feed_forward"
    r"|use_.*cache.*|output_.*|return_.*|gradient_.*|log_.*|.*learning_rate.*|.*_lr|lora_.*|peft.*"
    r"|(mm|tune|freeze|unfreeze|apply_spec|mask_time|mask_feature|ctc|neftune|use_im|image_aspect|image_grid)_.*"
    r"|.*vocab.*|tie_.*|.*tied.*|classifier_.*|summary_.*|problem_type|finetuning_task|task_specific_params|num_choices"
    r"|.*(max|n|num|original)_(position|length|seq|ctx).*|.*(model|target|source)_max_length|n_positions|n_ctx|seq_len.*"
    r"|max_(new_)?(len|length|tokens)|max_sequence_length|max_window_layers|max_seqlen|.*context_length|use_dynamic_ntk"
    r"|.*use_logn_attn|image_size|.*resolution.*|num_frames|image_seq_length|num_nextn_predict_layers|.*mtp.*"
    r"|min_length|do_sample|num_beams?|num_beam_groups|temperature|top_[kp]|typical_p|.*_penalty|.*no_repeat.*"
    r"|bad_words_ids|early_stopping|forced_.*|.*suppress_.*|remove_invalid_values|num_return_sequences"
    r"|exponential_decay_length|cross_attention_hidden_size|begin_suppress.*|.*deterministic.*"
)
# Values of other entries that are text (templates, addresses, comments) select no computation.
_SELECTING_TEXT = re.compile(r".*(act|activation|type|norm|func|method|position|proj|pattern|bias).*")
# A shorter attention span changes nothing in texts that fit into it.
_SPAN = re.compile(r"(use_)?sliding_window(_size|_pattern)?|attention_window(_size)?|local_attention_window")
_DEPTH = re.compile(r"(num|n)_(hidden_)?layers?|layer_types|.*_layers|depth")
_POSITIONS = frozenset(
    {
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "rotary_emb_base",
        "partial_rotary_factor",
        "rotary_pct",
    }
)
_ROPE_TYPES = {"mrope": "default", "su": "longrope"}  # multimodal sections rotate text as plain rotary positions do
_ACTIVATIONS = {
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
}


def computed_entries(config: Mapping[str, object]) -> dict[str, object]:
    """Return the entries of a flat config that determine the computation, by dotted key.

    `null` is left out: it selects the default, which another version writes as a value.
    """
    found: dict[str, object] = {}
    gemma = "hidden_activation" in config  # where this key exists, hidden_act is not used
    for key, value in config.items():
        if key in _POSITIONS or _IGNORED.fullmatch(key) or (gemma and key == "hidden_act"):
            continue
        if isinstance(value, Mapping):
            nested = computed_entries(cast("Mapping[str, object]", value))
            found.update({f"{key}.{inner}": item for inner, item in nested.items()})
        elif isinstance(value, str):
            if _SELECTING_TEXT.fullmatch(key):
                found[key] = _ACTIVATIONS.get(value, value)
        elif value is not None:
            found[key] = value
    return found | _positions(config)


def _positions(config: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of rotary positions; the type is "default" where none is given."""
    found: dict[str, object] = {}
    theta = config.get("rope_theta", config.get("rotary_emb_base"))
    partial = config.get("partial_rotary_factor", config.get("rotary_pct"))
    groups: dict[str, Mapping[str, object]] = {"": _mapping(config.get("rope_scaling"))}
    parameters = _mapping(config.get("rope_parameters"))
    by_layer = {name: _mapping(value) for name, value in parameters.items() if _mapping(value)}
    if by_layer:  # one group for each kind of attention
        groups = {"" if name == "full_attention" else f"{name}.": value for name, value in by_layer.items()}
    elif parameters:
        groups = {"": parameters}
    local = config.get("rope_local_base_freq")
    if local is not None:
        found["sliding_attention.rope_theta"] = local
    for prefix, group in groups.items():
        kind = str(group.get("rope_type", group.get("type", "default")))
        found[f"{prefix}rope_type"] = _ROPE_TYPES.get(kind, kind)
        found.update(
            {
                f"{prefix}{'rope_scaling.' if name not in ('rope_theta', 'partial_rotary_factor') else ''}{name}": value
                for name, value in group.items()
                if name not in ("type", "rope_type") and value is not None
            }
        )
    if theta is not None:
        found.setdefault("rope_theta", theta)
    if partial is not None:
        found.setdefault("partial_rotary_factor", partial)
    return found


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def is_attention_span(key: str) -> bool:
    """Return whether an entry only limits how far a token attends."""
    return bool(_SPAN.fullmatch(key.rpartition(".")[2]))


def is_depth(key: str, value: object) -> bool:
    """Return whether an entry is a number of layers or a list with one entry per layer."""
    return isinstance(value, list) or bool(_DEPTH.fullmatch(key.rpartition(".")[2]))
