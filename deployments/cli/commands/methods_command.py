"""`eigenmerge methods`: list the merge methods with their parameters and sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import JsonOption
from ..table import terminal_width, wrapped_lines
from ..terminal import show, show_json

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ....core.numerics.method import AnyMethod, MethodParameters

_PIPE_COLUMNS = 80
_KINDS = {
    "spectral": "a decomposition and a filter; another filter reuses the stored decomposition",
    "direct": "computes the merged tensor itself, and reads the experts in every run",
}


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="Show this method only.", show_default=False)
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Show all methods with their parameters.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the merge methods; METHOD shows one of them with its parameters, --long all."""
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
    width = terminal_width()
    if name is None and not long:
        show(*_overview(cards, width))
        return
    for number, card in enumerate(cards):
        show(*([""] if number else []), *wrapped_lines(_page(card), width))


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


def _overview(cards: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """Return the names of all methods in columns, which fit on one screen."""
    lines: list[str] = []
    for kind, meaning in _KINDS.items():
        names = [str(card["name"]) for card in cards if card.get("kind") == kind]
        lines += [f"{kind}: {meaning}", *_in_columns(names, width or _PIPE_COLUMNS)]
    lines.append("`eigenmerge methods NAME` shows one with its parameters; --long shows all.")
    lines += [line for card in cards if "unavailable" in card for line in _page(card)]
    return wrapped_lines(lines, width)


def _in_columns(names: Sequence[str], width: int) -> list[str]:
    size = max(map(len, names), default=0) + 2
    count = max(1, (width - 2) // size)
    rows = -(-len(names) // count)
    return ["  " + "".join(name.ljust(size) for name in names[row::rows]).rstrip() for row in range(rows)]


def _page(card: Mapping[str, Any]) -> list[str]:
    if "unavailable" in card:
        return [f"{card['name']}: unavailable: {card['unavailable']}"]
    aliases = f" (also called {', '.join(card['aliases'])})" if card["aliases"] else ""
    origin = f"package {card['package']}" if card["package"] else f"docs/methods/{card['name']}.md"
    lines = [
        f"{card['name']}{aliases}: {card['summary']}",
        f"  {card['kind']}: {_KINDS[card['kind']]}",
        f"  source: {card['source']}; {origin}",
    ]
    for title in ("parameters", "per_expert"):
        for parameter, text in card[title].items():
            lines.append(f"  {parameter}{' (per expert)' if title == 'per_expert' else ''}: {text}")
    return lines


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
