"""`eigenmerge methods`: list the merge methods with their parameters and sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import JsonOption
from ..terminal import show, show_json

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ....core.numerics.method import AnyMethod, MethodParameters


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="Show this method only.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the merge methods, each with its source and its parameters."""
    from ....core.numerics.registry import all_methods, get_method, unavailable_methods

    cards = [_card(method) for method in ([get_method(name)] if name else all_methods().values())]
    if name is None:
        cards += [
            {"name": entry.names[0], "package": entry.package, "unavailable": entry.reason}
            for entry in unavailable_methods()
        ]
    if as_json:
        show_json(cards)
        return
    for card in cards:
        _print_card(card)


def _card(method: AnyMethod) -> dict[str, Any]:
    from ....core.numerics.method import SpectralMethod

    return {
        "name": method.name,
        "aliases": list(method.aliases),
        "kind": "spectral" if isinstance(method, SpectralMethod) else "direct",
        "summary": method.summary,
        "source": method.source,
        "package": method.package,
        "parameters": _describe(method.Parameters),
        "per_expert": _describe(method.Expert),
    }


def _print_card(card: Mapping[str, Any]) -> None:
    if "unavailable" in card:
        show(f"{card['name']}: unavailable: {card['unavailable']}")
        return
    origin = f"; package {card['package']}" if card["package"] else ""
    show(f"{card['name']}: {card['summary']} [{card['kind']}; {card['source']}{origin}]")
    for title in ("parameters", "per_expert"):
        for parameter, text in card[title].items():
            show(f"    {parameter}{' (per expert)' if title == 'per_expert' else ''}: {text}")


def _describe(model: type[MethodParameters]) -> dict[str, str]:
    described: dict[str, str] = {}
    for field_name, field in model.model_fields.items():
        facts = [_describe_default(field), *_bounds(field.metadata)]
        described[field.alias or field_name] = f"{field.description} ({', '.join(facts)})"
    return described


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "optional" if field.default is None else f"default {field.default!r}"


def _bounds(metadata: Sequence[object]) -> list[str]:
    """Return the range of a parameter, such as "at least 0", from its pydantic constraints."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return [
        f"{word} {getattr(rule, name):g}" for name, word in words.items() for rule in metadata if hasattr(rule, name)
    ]
