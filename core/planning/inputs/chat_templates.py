"""The chat template of the output: a Jinja text, the name of a common format, or `auto` for that of most models.

The named templates are written from the published formats of the models, with mergekit's names:

    chatml   <|im_start|>role ... <|im_end|>                      (OpenAI's ChatML, Qwen)
    llama3   <|start_header_id|>role<|end_header_id|> ...         (Meta's model card of Llama 3)
    mistral  [INST] ... [/INST]                                   (Mistral 7B Instruct)
    alpaca   ### Instruction: ... ### Response:                   (Stanford Alpaca)
    exaone   [|system|] [|user|] [|assistant|] ... [|endofturn|]  (LG EXAONE 3)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ...errors import CheckpointError, RecipeError
from ...listing import ModelListing

AUTO = "auto"
# In the order in which transformers looks for the template.
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")

NAMED_TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
        " + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set state = namespace(system='', turn='user') %}{% for message in messages %}"
        "{% if message['role'] == 'system' and loop.first %}"
        "{% set state.system = message['content'] + '\\n\\n' %}"
        "{% elif message['role'] != state.turn %}"
        "{{ raise_exception('expected an optional system message, then user and assistant in turn') }}"
        "{% elif message['role'] == 'user' %}"
        "{{ ' [INST] ' + state.system + message['content'] + ' [/INST]' }}"
        "{% set state.system = '' %}{% set state.turn = 'assistant' %}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% set state.turn = 'user' %}{% endif %}"
        "{% endfor %}"
    ),
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] | trim + '\\n\\n' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
}


def choose_template(value: str, models: Iterable[ModelListing], contents: Mapping[str, bytes]) -> str | None:
    """Return the template that `chat_template: value` means; None if `auto` finds none in any model.

    Parameters
    ----------
    models : all models of the recipe; of equally common templates the first is taken
    contents : content of the files of `template_files` by URI, for `auto`

    Raises
    ------
    RecipeError : neither a Jinja template nor a known name
    CheckpointError : a tokenizer_config.json or chat_template.json is not JSON
    """
    if value == AUTO:
        found = [template for model in models if (template := read_template(model, contents))]
        return Counter(found).most_common(1)[0][0] if found else None
    if "{" in value:
        return value
    if value in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[value]
    raise RecipeError(
        f"chat_template: {value[:60]!r} is unknown; expected a Jinja template, auto, or one of"
        f" {', '.join(sorted(NAMED_TEMPLATES))}"
    )


def template_files(value: str | None, models: Iterable[ModelListing]) -> list[str]:
    """Return the URIs of the files that `choose_template` reads."""
    if value != AUTO:
        return []
    return [model.side_files[name] for model in models for name in _TEMPLATE_FILES if name in model.side_files]


def read_template(model: ModelListing, contents: Mapping[str, bytes]) -> str | None:
    """Return the template of a model, without white space around it; None where it has none.

    Raises
    ------
    CheckpointError : a tokenizer_config.json or chat_template.json is not JSON
    """
    for name in _TEMPLATE_FILES:
        content = contents.get(model.side_files.get(name, ""))
        if content is None:
            continue
        if name.endswith(".jinja"):
            template: Any = content.decode(errors="replace")
        else:
            try:
                template = json.loads(content).get("chat_template")
            except (ValueError, AttributeError, RecursionError):
                raise CheckpointError(f"{model.side_files[name]}: is not a JSON object; repair the file") from None
        if isinstance(template, list):  # several templates: [{"name": "default", "template": ...}, ...]
            named: list[dict[str, Any]] = [entry for entry in cast("list[Any]", template) if isinstance(entry, dict)]
            template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
        if isinstance(template, str) and template.strip():
            return template.strip()
    return None
