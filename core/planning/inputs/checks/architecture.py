"""Check that base and experts have one architecture: equal weights must compute the same function in each of them.

Weights of two architectures can have the same names and shapes. Their config.json tells them apart: model type, number
of layers and heads, rotary positions, activation. An entry that only one of two files has is not compared, because
versions of Transformers write different sets of entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import cast

from ....errors import CheckpointError
from ....listing import ModelListing
from .config_keys import computed_entries, is_attention_span, is_depth

Config = Mapping[str, object]

_MAX_SHOWN = 3
_LONGEST_VALUE = 60
# What follows the name of the architecture in a class name: LlamaFor..., GPT2LMHeadModel, CLIPTextModelWithProjection.
_HEAD_OF_CLASS = re.compile(r"(For[A-Z]|LMHead|DoubleHeads|Pre[Tt]rain|Model($|[A-Z])|With[A-Z]).*$")
# Words of a model type that name a part or a modality of its family: qwen2_vl, gemma3_text, clip_vision_model.
_PART_WORDS = frozenset({"text", "vision", "audio", "vl", "v", "vlm", "mm", "omni", "model", "chat", "language", "lm"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry of config.json with two values.

    limits_only : it only limits how far a token attends
    """

    key: str
    reference: object
    own: object
    limits_only: bool = False


def check_architectures(
    reference: ModelListing, experts: Sequence[ModelListing], *, allow_mixed: bool, by_layers: bool
) -> list[str]:
    """Compare config.json of each expert with that of the reference, and return warnings.

    Models without a config.json and adapters are not compared.

    Parameters
    ----------
    allow_mixed : `allow_mixed_architectures` of the recipe: differences are warnings
    by_layers : the recipe has slices, so numbers of layers may differ

    Raises
    ------
    CheckpointError : a value differs; names the entry, both models and both values
    """
    warnings: list[str] = []
    for expert in experts:
        if expert.kind == "adapter" or expert.config is None or reference.config is None:
            continue
        found = find_differences(reference.config, expert.config)
        if by_layers:
            found = [item for item in found if not is_depth(item.key, item.own)]
        serious = [item for item in found if not item.limits_only]
        if serious and not allow_mixed:
            more = f" (and {len(serious) - _MAX_SHOWN} more)" if len(serious) > _MAX_SHOWN else ""
            shown = "; ".join(_show(item, reference, expert) for item in serious[:_MAX_SHOWN])
            raise CheckpointError(
                f"config.json: {shown}{more}; with another value, the same weights give other outputs. Merge models"
                " of one architecture, or set `allow_mixed_architectures: true`"
            )
        warnings += [f"config.json: {_show(item, reference, expert)}; the output has the first" for item in found]
    return warnings


def _show(item: Difference, reference: ModelListing, expert: ModelListing) -> str:
    return f"{item.key} is {_short(item.reference)} in {reference.name} and {_short(item.own)} in {expert.name}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def find_differences(reference: Config, own: Config) -> list[Difference]:
    """Return the entries with which the same weights give other outputs, the model type first.

    A model with text and vision parts is compared with a model that is one of these parts by that part.
    """
    types = _text(reference, "model_type"), _text(own, "model_type")
    if types[0] == types[1] or "" in types:
        return _compare_classes(reference, own) + _compare(_flatten(reference), _flatten(own))
    for whole, part, swapped in ((reference, own, False), (own, reference, True)):
        counterpart = _find_part(whole, part)
        if counterpart is not None:
            pair = (part, counterpart) if swapped else (counterpart, part)
            return _compare(_flatten(pair[0]), _flatten(pair[1]))
    return [Difference("model_type", *types), *_compare(_flatten(reference), _flatten(own))]


def _compare_classes(reference: Config, own: Config) -> list[Difference]:
    """Compare the classes without their heads: LlamaForCausalLM and LlamaModel agree."""
    classes = _class_name(reference), _class_name(own)
    stems = [_HEAD_OF_CLASS.sub("", name).casefold() for name in classes]
    if not all(stems) or stems[0] in stems[1] or stems[1] in stems[0]:
        return []
    return [Difference("architectures", *classes)]


def _class_name(config: Config) -> str:
    names = config.get("architectures")
    return str(cast("list[object]", names)[0]) if isinstance(names, list) and names else ""


def _find_part(whole: Config, part: Config) -> Config | None:
    """Return the part of a composite config that another config describes; None if it has no such part."""
    kind = _text(part, "model_type")
    nested = list(_nested_configs(whole))
    for _, config in nested:
        if _text(config, "model_type") == kind:
            return config
    if not nested or not _is_of_family(_text(whole, "model_type"), kind, nested):
        return None
    words = re.split(r"[^a-z0-9]+", kind.lower())
    named = next((config for key, config in nested if key.split("_")[0] in words), None)
    return named if named is not None else _flatten(whole)


def _is_of_family(whole: str, part: str, nested: Sequence[tuple[str, Config]]) -> bool:
    """Return whether the words of a text model's type are among those of a composite model or of its parts."""
    wanted = _family_words(part)
    kinds = [whole, *(_text(config, "model_type") for _, config in nested)]
    return bool(wanted) and any(wanted <= _family_words(kind) for kind in kinds)


def _family_words(kind: str) -> frozenset[str]:
    words = [word for word in re.split(r"[^a-z0-9]+", kind.lower()) if word and word not in _PART_WORDS]
    return frozenset(re.sub(r"(?<=\d)(vl|v)$", "", word) for word in words)


def _nested_configs(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield the configs of parts (text_config, vision_config, thinker_config.text_config), with their keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            nested = cast("Config", value)
            if key.endswith("config") and key not in ("quantization_config", "generation_config"):
                yield key, nested
                yield from _nested_configs(nested)


def _flatten(config: Config) -> Config:
    """Return a config whose text part stands at the top level, as older versions of composite models wrote it."""
    texts = [key for key in config if key in ("text_config", "llm_config", "language_config", "thinker_config")]
    if len(texts) != 1 or not isinstance(config[texts[0]], Mapping):
        return config
    text = _flatten(cast("Config", config[texts[0]]))
    return {key: value for key, value in config.items() if key != texts[0]} | dict(text)


def _compare(reference: Config, own: Config) -> list[Difference]:
    first, second = computed_entries(reference), computed_entries(own)
    return [
        Difference(key, first[key], second[key], is_attention_span(key))
        for key in first
        if key in second and not _equal(first[key], second[key])
    ]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        pairs = list(zip(cast("list[object]", one), cast("list[object]", other), strict=False))
        return len(cast("list[object]", one)) == len(cast("list[object]", other)) and all(_equal(*p) for p in pairs)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return isclose(one, other, rel_tol=1e-6)
    return one == other


def _text(config: Config, key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""
