"""One chat template in the output, in whichever file a reader looks.

transformers 5 reads chat_template.jinja, earlier versions and llama.cpp's converter tokenizer_config.json, processors
chat_template.json. Named templates are a list in tokenizer_config.json, or files in additional_chat_templates/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...errors import CheckpointError
from ...formats.bounded_json import LONGEST_CONFIG_BYTES, parse_json_object
from ...formats.file_names import TEMPLATE_NAME, TEMPLATES_FOLDER, TOKENIZER_CONFIG_NAME
from ..plan import SideFile

_PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")
_LEGACY_NAME = "chat_template.json"
_KEY = "chat_template"


def template_files(files: Mapping[str, str]) -> list[str]:
    """Return the URIs of the configs that can hold a chat template, among the side files of a model."""
    return [files[name] for name in (TOKENIZER_CONFIG_NAME, *_PROCESSOR_CONFIGS) if name in files]


def set_chat_template(files: dict[str, SideFile], template: str, contents: Mapping[str, bytes]) -> None:
    """Make a template the only one of the output.

    Parameters
    ----------
    files : side files of the output by name; changed in place
    contents : content by URI of `template_files`

    Raises
    ------
    CheckpointError : a config is malformed
    """
    for name in [name for name in files if name == _LEGACY_NAME or name.startswith(f"{TEMPLATES_FOLDER}/")]:
        del files[name]
    files[TEMPLATE_NAME] = SideFile(TEMPLATE_NAME, None, template.encode())
    for name in (TOKENIZER_CONFIG_NAME, *_PROCESSOR_CONFIGS):
        config = _read(files.get(name), contents)
        if config is None:
            continue
        if name == TOKENIZER_CONFIG_NAME:
            config[_KEY] = template
        elif _KEY in config:
            del config[_KEY]
        else:
            continue
        text = json.dumps(config, indent=2, ensure_ascii=False)
        files[name] = SideFile(name, None, f"{text}\n".encode())


def _read(file: SideFile | None, contents: Mapping[str, bytes]) -> dict[str, object] | None:
    if file is None:
        return None
    if file.content is not None:
        return parse_json_object(file.content, file.name, LONGEST_CONFIG_BYTES, finite=False)
    assert file.source_uri is not None
    if file.source_uri not in contents:
        raise CheckpointError(f"{file.source_uri}: is needed to replace its chat template, and was not read")
    return parse_json_object(contents[file.source_uri], file.source_uri, LONGEST_CONFIG_BYTES, finite=False)
