"""The metadata of a merged model's card: base models, license, languages, data sets, tags and measured results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..escaping import printable
from .card_rules import LICENSES, is_hub_id, is_language
from .input_cards import InputCard

#: Measured results: data set to metric to value, as in {"wikitext": {"perplexity": 8.1}}.
Results: TypeAlias = Mapping[str, Mapping[str, float]]


def card_metadata(cards: Sequence[InputCard], method: str, *, is_adapter: bool, results: Results | None = None) -> str:
    """Return the metadata as YAML. Only what the Hub accepts is in it (`card_rules.py`).

    `base_model` has ids of the Hub only, never paths. License, languages, data sets and library are those on which all
    inputs agree; what one input does not state is not in it.

    Parameters
    ----------
    cards : of the base first, then of the experts
    method : of the recipe
    results : of the merged model; their task is the one that all inputs state, or else "other"
    """
    from huggingface_hub import EvalResult, ModelCardData  # 0.1 s to import, needed once per merge

    # An adapter belongs to one model.
    ids = list(dict.fromkeys(card.hub_id for card in (cards[:1] if is_adapter else cards) if card.hub_id is not None))
    ids = [one for one in ids if is_hub_id(one)]
    facts: dict[str, Any] = {}
    if ids:
        facts |= {"base_model": ids[0] if is_adapter else ids}
        facts |= {"base_model_relation": "adapter" if is_adapter else "merge"}
    task = agreed(cards, "pipeline_tag")
    measured = [
        EvalResult(
            task_type=printable(task[0]) if len(task) == 1 else "other",
            dataset_type=data_set,
            dataset_name=data_set,
            metric_type=name,
            metric_value=value,
        )
        for data_set, values in (results or {}).items()
        for name, value in values.items()
    ]
    if measured:
        facts |= {"eval_results": measured, "model_name": f"Merged model ({printable(method)})"}
    library = agreed(cards, "library_name")
    return str(
        ModelCardData(
            library_name="peft" if is_adapter else printable(library[0]) if len(library) == 1 else "transformers",
            tags=["eigenmerge", "merge", printable(method)],
            datasets=[printable(one) for one in agreed(cards, "datasets")] or None,
            language=[code for code in agreed(cards, "language") if is_language(code)] or None,
            **_license(cards),
            **facts,
        )
    )


def license_lines(cards: Sequence[InputCard]) -> list[str]:
    """Return a paragraph of Markdown where the inputs do not state one license together, without Markdown in it."""
    if _license(cards):
        return []
    stated = sorted({name for card in cards for name in card.texts("license")})
    if not stated:
        return []
    silent = sum(not card.texts("license") for card in cards)
    text = f"The inputs state these licenses: {', '.join(printable(name)[:100] for name in stated)}"
    return [text + (f"; {silent} of {len(cards)} state none." if silent else "."), ""]


def agreed(cards: Sequence[InputCard], key: str) -> tuple[str, ...]:
    """Return the value on which all inputs agree; empty where one differs or has none."""
    values = {card.texts(key) for card in cards}
    return values.pop() if len(values) == 1 else ()


def _license(cards: Sequence[InputCard]) -> dict[str, str]:
    found = agreed(cards, "license")
    if len(found) != 1 or found[0] not in LICENSES:
        return {}
    facts = {"license": found[0]}
    if found[0] != "other":
        return facts
    for key in ("license_name", "license_link"):
        value = agreed(cards, key)
        if len(value) != 1:
            return {}  # "other" without a name says nothing
        facts[key] = printable(value[0])
    return facts
