"""The rules of the Hugging Face Hub for the metadata of a model card, checked without the network.

Sources: https://huggingface.co/docs/hub/model-cards, https://huggingface.co/docs/hub/repositories-licenses (read in
November 2026).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from ..errors import RecipeError
from ..recipe.strict_yaml import parse_yaml_mapping

_LICENSE_NAMES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
"""
LICENSES = frozenset(_LICENSE_NAMES.split())
RELATIONS = frozenset({"adapter", "finetune", "merge", "quantized"})

_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
_LONGEST_ID = 96
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


def is_hub_id(text: str) -> bool:
    """Return whether a text has the form owner/name of the Hub."""
    parts = text.split("/")
    return (
        len(parts) == 2
        and len(text) <= _LONGEST_ID
        and all(_HUB_NAME.fullmatch(part) and "--" not in part and ".." not in part for part in parts)
        and not text.endswith(".git")
    )


def is_language(text: str) -> bool:
    """Return whether a text is a language code, "code" or "multilingual"."""
    return _LANGUAGE.fullmatch(text) is not None


def read_metadata(card: str) -> dict[str, object] | None:
    """Return the metadata at the beginning of a card; None where it has none.

    Raises
    ------
    RecipeError : it is not YAML, or no mapping
    """
    found = _FRONT_MATTER.match(card)
    return None if found is None else parse_yaml_mapping(found[1], "the metadata of the card")


def metadata_problems(card: str) -> list[str]:
    """Return one line for each value of a card that the Hub would refuse."""
    try:
        data = read_metadata(card)
    except RecipeError as error:
        return [str(error)]
    if data is None:
        return ["there is no metadata between two lines of ---"]
    return list(_problems(data))


def _problems(data: Mapping[str, object]) -> Iterator[str]:
    for model in _texts(data.get("base_model")):
        if not is_hub_id(model):
            yield f"base_model {model[:200]!r} is no id of the Hub, expected owner/name"
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f"base_model_relation {relation!r} is not one of {', '.join(sorted(RELATIONS))}"
    for name in _texts(data.get("license")):
        if name not in LICENSES:
            yield f"license {name[:200]!r} is no id of the Hub; expected one such as apache-2.0"
    for code in _texts(data.get("language")):
        if not is_language(code):
            yield f"language {code[:200]!r} is no language code, expected one such as en"
    for key in ("tags", "datasets"):
        value = data.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(one, str) for one in cast("list[object]", value))
        ):
            yield f"{key}: expected a list of texts"
    if "model-index" in data:
        from huggingface_hub import ModelCardData

        try:
            ModelCardData(**cast("dict[str, Any]", {"model-index": data["model-index"]}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield f"model-index: {error}"


def _texts(value: object) -> list[str]:
    """Return a text or a list of texts as a list; other values as they are written."""
    if value is None:
        return []
    return [str(one) for one in cast("list[object]", value)] if isinstance(value, list) else [str(value)]
