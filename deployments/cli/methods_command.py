"""`eigenmerge methods`: every method with its line, parameters and source."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .options import JsonOption


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Only this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the merge methods: one line each, parameters with their defaults, source."""
    from ...core.numerics.method import SpectralMethod
    from ...core.numerics.registry import all_methods, get_method

    chosen = [get_method(name)] if name else list(all_methods().values())
    cards = [
        {
            "name": method.name,
            "aliases": list(method.aliases),
            "kind": "spectral" if isinstance(method, SpectralMethod) else "direct",
            "summary": method.summary,
            "source": method.source,
            "parameters": _describe(method.Parameters),
            "per_expert": _describe(method.Expert),
        }
        for method in chosen
    ]
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    for card in cards:
        print(f"{card['name']}: {card['summary']} [{card['kind']}; {card['source']}]")
        for title in ("parameters", "per_expert"):
            for parameter, text in card[title].items():
                print(f"    {parameter}{' (per expert)' if title == 'per_expert' else ''}: {text}")


def _describe(model: type) -> dict[str, str]:
    described = {}
    for field_name, field in model.model_fields.items():  # pyright: ignore[reportAttributeAccessIssue]
        default = "required" if field.is_required() else f"default {field.default!r}"
        described[field.alias or field_name] = f"{field.description} ({default})"
    return described
