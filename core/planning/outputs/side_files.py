"""The small files of the output: an updated config.json, and files copied from the model that gives the tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ...errors import CheckpointError, RecipeError
from ...formats.file_names import CONFIG_NAME, INDEX_NAME, MANIFEST_NAME, MODEL_CARD_NAME, TOKENIZER_NAME
from ...listing import ModelListing
from ...recipe.recipe import Recipe
from ..inputs.quantized import is_quantized, remove_quantization
from ..plan import SideFile

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Files that the merge itself writes; the base's would be wrong.
_GENERATED_FILES = frozenset({MODEL_CARD_NAME, MANIFEST_NAME, CONFIG_NAME, INDEX_NAME, "hf_quant_config.json"})
_SAFE_NAME = re.compile(r"[\w][\w.+ -]{0,199}", re.ASCII)


def plan_side_files(
    recipe: Recipe,
    reference: ModelListing,
    config_changes: Mapping[str, object],
    tokenizer: ModelListing | None = None,
    tokenizer_json: bytes | None = None,
) -> tuple[SideFile, ...]:
    """Return the files of the output other than weights, sorted by name.

    Parameters
    ----------
    reference : the base, or the first model
    config_changes : keys of config.json that the merge changes (number of layers, size of the vocabulary)
    tokenizer : the model whose files are copied; the reference by default
    tokenizer_json : content of tokenizer.json, where it differs from the copied one

    Raises
    ------
    RecipeError : the chat template is neither a Jinja template nor a known name
    CheckpointError : a file name of a model is unsafe: it could be outside of the destination
    """
    files: dict[str, SideFile] = {}
    for name, uri in (tokenizer or reference).side_files.items():
        if not _SAFE_NAME.fullmatch(name) or ".." in name:
            raise CheckpointError(
                f"{reference.name}: file name {name[:200]!r} is refused; rename the file to letters, digits and . _ + -"
            )
        if name not in _GENERATED_FILES:
            files[name] = SideFile(name, uri)
    if tokenizer_json is not None:
        files[TOKENIZER_NAME] = SideFile(TOKENIZER_NAME, None, tokenizer_json)
        for name in ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"):
            files.pop(name, None)  # they lack the added tokens
    if reference.config is not None:
        config = {**reference.config, **config_changes}
        if is_quantized(config):
            config = remove_quantization(config)
        dtype = recipe.out_dtype or recipe.dtype or ("bfloat16" if is_quantized(reference.config) else None)
        if dtype is not None:
            # transformers 5 writes `dtype`, earlier versions `torch_dtype`; keep the key that is present
            config["dtype" if "dtype" in config else "torch_dtype"] = dtype
        files[CONFIG_NAME] = SideFile(CONFIG_NAME, None, (json.dumps(config, indent=2) + "\n").encode())
    if recipe.chat_template is not None:
        template = _chat_template(recipe.chat_template)
        files["chat_template.jinja"] = SideFile("chat_template.jinja", None, template.encode())
        files.pop("chat_template.json", None)
    return tuple(files[name] for name in sorted(files))


def _chat_template(value: str) -> str:
    if "{" in value:
        return value
    if value == "chatml":
        return _CHATML
    raise RecipeError(
        f"chat_template: {value[:60]!r} is unknown; expected a Jinja template or chatml; remove it to keep the base's"
    )
