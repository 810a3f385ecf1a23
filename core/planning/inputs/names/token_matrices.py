"""Which tensors of a model have one row for each token, found by their shapes: input embeddings and output projections.

Names of output projections differ from family to family (lm_head, embed_out, proj_out, generator_lm_head,
predictions.decoder, output_layer). What they share: outside of layers, as many rows as the vocabulary, as many columns
as the input embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, cast

from ....formats.dtypes import MERGEABLE_DTYPES
from ....listing import Concatenation, TensorSource
from ...names import layer_of, tensor_kind

Role = Literal["embedding", "lm_head", "bias"]

_OTHER_TABLES = re.compile(r"pos|type|segment|wpe|relative|time|rotary|patch")
_VOCABULARY_KEY = re.compile(r"(padded_|n_)?vocab(ulary)?(_size)?")
# Classes with an output projection; those of Transformers tie it to the embedding unless config.json says otherwise.
_WITH_HEAD = re.compile(
    r"For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining|\w*Generation\w*|\w*TextToText)|LMHead|DoubleHeads"
)


def token_roles(tensors: Mapping[str, TensorSource], config: Mapping[str, object] | None) -> dict[str, Role]:
    """Return the role of each tensor with one row for each token.

    The number of tokens is read from config.json, and from tensors whose name says that they embed tokens.

    Parameters
    ----------
    config : config.json; vocabularies of its parts count too
    """
    outside = {
        name: source
        for name, source in tensors.items()
        if source.shape and len(source.shape) <= 2 and source.dtype in MERGEABLE_DTYPES and layer_of(name) is None
    }
    kinds = {name: tensor_kind(name, source.shape, source.dtype) for name, source in outside.items()}
    embeddings = [name for name, kind in kinds.items() if kind == "embedding" and not _OTHER_TABLES.search(name)]
    rows = {outside[name].shape[0] for name in embeddings} | set(_vocabulary_sizes(config or {}))
    columns = {outside[name].shape[-1] for name in embeddings}
    roles: dict[str, Role] = {}
    for name, source in outside.items():
        if name in embeddings:
            roles[name] = "embedding"
        elif kinds[name] == "lm_head":
            roles[name] = "lm_head"
        elif source.shape[0] not in rows:
            continue
        elif len(source.shape) == 1 and name.endswith("bias"):
            roles[name] = "bias"
        elif kinds[name] == "matrix" and source.shape[-1] in (columns or source.shape) and len(set(source.shape)) == 2:
            roles[name] = "lm_head"
    return roles


def _vocabulary_sizes(config: Mapping[str, object]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _vocabulary_sizes(cast("Mapping[str, object]", value))
        elif isinstance(value, int) and _VOCABULARY_KEY.fullmatch(key):
            yield value


def tie_flag(config: Mapping[str, object] | None) -> bool | None:
    """Return `tie_word_embeddings` of config.json or of its text part; None where it is not stated."""
    config = config or {}
    text = config.get("text_config")
    parts = [config, cast("Mapping[str, object]", text)] if isinstance(text, Mapping) else [config]
    flags = [part["tie_word_embeddings"] for part in parts if isinstance(part.get("tie_word_embeddings"), bool)]
    return bool(any(flags)) if flags else None


def ties_unstored_head(config: Mapping[str, object] | None) -> bool:
    """Return whether a model that stores no output projection has one, tied to its input embedding."""
    flag = tie_flag(config)
    classes = (config or {}).get("architectures")
    if isinstance(classes, list) and classes:
        return flag is not False and bool(_WITH_HEAD.search(str(cast("list[object]", classes)[0])))
    return flag is True


def tensors_to_compare(
    tensors: Mapping[str, TensorSource], config: Mapping[str, object] | None
) -> list[tuple[str, ...]]:
    """Return groups of names whose tensors may be one tied weight: equal shape and dtype, one row for each token."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in token_roles(tensors, config):
        source = tensors[name]
        if source.scale is None and (source.view is None or isinstance(source.view, Concatenation)):
            groups.setdefault((source.dtype, source.shape), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
