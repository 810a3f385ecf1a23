"""The small files of the output: an updated config.json, and files copied from the base and the tokenizer's model.

Everything is the base's, except the files of the tokenizer where `tokenizer_source` names a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from ...errors import CheckpointError
from ...formats.file_names import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    MODEL_CARD_NAME,
    TEMPLATES_FOLDER,
    TOKENIZER_NAME,
)
from ...listing import ModelListing
from ...recipe.recipe import Recipe
from ..inputs.quantized import remove_quantization, stores_float8
from ..plan import SideFile
from .chat_template import set_chat_template, template_files

# Files that the merge itself writes; the base's would be wrong.
_GENERATED_FILES = frozenset({MODEL_CARD_NAME, MANIFEST_NAME, CONFIG_NAME, INDEX_NAME})
# Files that describe quantized weights, which no merge writes.
_QUANTIZATION_FILES = frozenset(
    {"hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"}
)
_SAFE_NAME = re.compile(r"[\w][\w.+ -]{0,199}", re.ASCII)
_DEEPEST_FOLDER = 4
# JSON files that describe a model. Other JSON files, and files that are not JSON, are of its tokenizer: vocabularies,
# merges, normalizers and chat templates have any name (tekken.json, emoji.json, spiece.model, dict.txt).
_MODEL_JSON = ("*config.json", "configuration.json", "modules.json", "params.json")
_TOKENIZER_JSON = ("tokenizer*.json",)


def side_contents_needed(recipe: Recipe, reference: ModelListing, tokenizer: ModelListing | None) -> list[str]:
    """Return the URIs of the side files whose content `plan_side_files` takes.

    Parameters
    ----------
    tokenizer : listing of `recipe.vocabulary_source`, where that is a model
    """
    needed: list[str] = []
    if recipe.chat_template is not None:
        needed += template_files(_copied_files(reference, tokenizer))
    if tokenizer is not None:
        files = [model.side_files.get(GENERATION_CONFIG_NAME) for model in (reference, tokenizer)]
        needed += [uri for uri in files if uri is not None]
    return needed


def plan_side_files(
    recipe: Recipe,
    reference: ModelListing,
    config_changes: Mapping[str, object],
    tokenizer: ModelListing | None = None,
    tokenizer_json: bytes | None = None,
    contents: Mapping[str, bytes] | None = None,
    generation_config: bytes | None = None,
    quantization: Mapping[str, object] | None = None,
    chat_template: str | None = None,
) -> tuple[SideFile, ...]:
    """Return the files of the output other than weights, sorted by name.

    Parameters
    ----------
    reference : the base, or the first model
    config_changes : keys of config.json that the merge changes (number of layers, size of the vocabulary, token ids);
        None removes a key
    tokenizer : the model whose tokenizer files are copied; the reference by default
    tokenizer_json : content of tokenizer.json, where it differs from the copied one
    contents : content by URI of the files that `side_contents_needed` returns
    generation_config : content of generation_config.json, where it differs from the reference's
    quantization : quantization_config of the output's config.json, where weights are stored as float8
    chat_template : the output's template, where the recipe sets one

    Raises
    ------
    CheckpointError : a file name of a model is unsafe: it could be outside of the destination; or two models have
        different code under one name
    """
    files = {name: SideFile(name, uri) for name, uri in _copied_files(reference, tokenizer).items()}
    if tokenizer_json is not None:
        files[TOKENIZER_NAME] = SideFile(TOKENIZER_NAME, None, tokenizer_json)
        for name in ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"):
            files.pop(name, None)  # they lack the added tokens
    if generation_config is not None:
        files[GENERATION_CONFIG_NAME] = SideFile(GENERATION_CONFIG_NAME, None, generation_config)
    if reference.config is not None:
        config = {**reference.config, **config_changes}
        config = {key: value for key, value in config.items() if value is not None or key not in config_changes}
        config = remove_quantization(config)
        if quantization is not None:
            config["quantization_config"] = dict(quantization)
        dtype = recipe.out_dtype or recipe.dtype or ("bfloat16" if stores_float8(reference.tensors) else None)
        if dtype is not None:
            # transformers 5 writes `dtype`, earlier versions `torch_dtype`; keep the key that is present
            config["dtype" if "dtype" in config else "torch_dtype"] = dtype
        files[CONFIG_NAME] = SideFile(CONFIG_NAME, None, (json.dumps(config, indent=2) + "\n").encode())
    if chat_template is not None:
        set_chat_template(files, chat_template, contents or {})
    return tuple(files[name] for name in sorted(files))


def _copied_files(reference: ModelListing, tokenizer: ModelListing | None) -> dict[str, str]:
    """Return name to URI of the files that are copied."""
    if tokenizer is None or tokenizer is reference:
        return _checked_names(reference)
    own, other = _checked_names(reference), _checked_names(tokenizer)
    files = {name: uri for name, uri in own.items() if not _is_of_tokenizer(name, reference)}
    for name, uri in other.items():
        if not _is_of_tokenizer(name, tokenizer):
            continue
        if name in files:
            raise CheckpointError(
                f"{name}: the tokenizer of {tokenizer.name} and the model {reference.name} both have code of this name;"
                " rename one of them and its entry in auto_map"
            )
        files[name] = uri
    return files


def _checked_names(listing: ModelListing) -> dict[str, str]:
    for name in listing.side_files:
        parts = name.split("/")
        if len(parts) > _DEEPEST_FOLDER or ".." in name or not all(map(_SAFE_NAME.fullmatch, parts)):
            raise CheckpointError(
                f"{listing.name}: file name {name[:200]!r} is refused; rename the file to letters, digits and . _ + -"
            )
    return {name: uri for name, uri in listing.side_files.items() if name not in _GENERATED_FILES | _QUANTIZATION_FILES}


def _is_of_tokenizer(name: str, listing: ModelListing) -> bool:
    """Return whether a file belongs to a model's tokenizer and not to the model."""
    if "/" in name:
        return name.startswith(f"{TEMPLATES_FOLDER}/")
    if name.endswith(".py"):
        return name in listing.tokenizer_code
    if any(fnmatchcase(name, pattern) for pattern in _TOKENIZER_JSON):
        return True
    return not any(fnmatchcase(name, pattern) for pattern in _MODEL_JSON)
