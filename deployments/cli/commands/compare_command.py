"""`eigenmerge compare`: what differs between two checkpoints or merges, as text, JSON or one HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..html_file import check_html_place, write_html
from ..options import JsonOption, RecipeForStoreOption, StoreOption, check_places, open_store, show_count
from ..status import set_status
from ..table import table_lines, terminal_width, wrapped_lines
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.steps.reading.compare_models import ComparedModel, Comparison
    from ....core.steps.reading.compare_tensors import GroupDifference, TensorDifference

PAGE_MARK = '<meta name="generator" content="eigenmerge compare">'
_MOST_SHOWN = 10
_MOST_CHARACTERS_OF_A_VALUE = 60


def compare(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="Checkpoint: directory, URI, Hub name or BASE+ADAPTER; or the key of a run."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Compare what A and B add to this model.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write all of it to one HTML file as well.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List all tensors.")] = False,
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models: difference and angle of each tensor, layers that moved most, ranks, recipe keys.

    The difference is ||B - A|| / ||A||. Reads all tensors of both, in blocks.
    """
    set_status("reading headers")
    from ....core.steps.read_recipe import read_recipe
    from ....core.steps.reading.compare_models import compare_models

    if html is not None:
        check_html_place(html, PAGE_MARK, "compare")
    options = read_recipe(recipe).storage_options if recipe is not None else None
    check_places(options, A=a, B=b, base=base)
    found = compare_models(
        a,
        b,
        base=base,
        store=open_store(store, recipe),
        storage_options=options,
        on_tensor=lambda done, total: set_status(f"comparing tensors, {done} of {total}"),
    )
    if html is not None:
        from ..compare_page import comparison_page

        write_html(html, comparison_page(found))
    if as_json:
        show_json(found.as_dict())
        return
    show(*comparison_lines(found, terminal_width(), all_tensors=tensors))
    if html is not None:
        show(f"written: {html}")


def comparison_lines(found: Comparison, width: int | None, *, all_tensors: bool = False) -> list[str]:
    """Return the text of a comparison. Only names are shortened to the width."""
    lines = wrapped_lines([f"A  {describe_model(found.a)}", f"B  {describe_model(found.b)}"], width)
    lines += wrapped_lines(summary_lines(found), width)
    moved = [row for row in found.layers if row.difference > 0]
    if moved:
        lines += ["", f"layers that moved most ({min(len(moved), _MOST_SHOWN)} of {len(moved)})"]
        lines += table_lines(("difference", "angle", "layer"), [layer_cells(row) for row in moved[:_MOST_SHOWN]], width)
    ordered = sorted(found.of_status("differs"), key=lambda row: -(row.difference or 0.0))
    shown = list(found.tensors) if all_tensors else ordered[:_MOST_SHOWN]
    if shown:
        title = "all tensors" if all_tensors else f"tensors that differ most ({len(shown)} of {len(ordered)})"
        lines += ["", title]
        lines += table_lines(("difference", "angle", "tensor"), [tensor_cells(row) for row in shown], width)
    for status in ("other shape", "not finite", "only in A", "only in B"):
        lines += _problem_lines(status, found.of_status(status), width)
    if found.ranks:
        lines += ["", f"ranks that differ ({min(len(found.ranks), _MOST_SHOWN)} of {len(found.ranks)})"]
        cells = [(str(one), str(other), name) for name, one, other in found.ranks[:_MOST_SHOWN]]
        lines += table_lines(("A", "B", "tensor"), cells, width)
    if found.recipe_keys:
        keys = [
            f"  {path}: {show_value(one)} -> {show_value(other)}" for path, (one, other) in found.recipe_keys.items()
        ]
        more = len(keys) - _MOST_SHOWN
        lines += ["", "recipe", *wrapped_lines(keys[:_MOST_SHOWN], width)]
        lines += [f"  and {show_count(more, 'other key')}; --json and --html list all"] if more > 0 else []
    return lines + ([""] if found.inputs else []) + wrapped_lines(found.inputs, width)


def describe_model(model: ComparedModel) -> str:
    """Return the name of one side, and of a merge its method and number of experts."""
    if model.manifest is None:
        return f"{model.name}: {model.listing.kind} model"
    method, count = model.manifest.recipe.get("merge_method"), len(model.manifest.experts)
    return f"{model.name}: merge of {show_count(count, 'expert')} by {method}, run {model.manifest.run_key[:12]}"


def summary_lines(found: Comparison) -> list[str]:
    """Return how many tensors are equal, differ or are in one model only, and the difference of the whole."""
    counts = {status: len(found.of_status(status)) for status in ("equal", "differs")}
    rest = {status: len(found.of_status(status)) for status in ("other shape", "not finite", "only in A", "only in B")}
    counts |= {status: count for status, count in rest.items() if count}
    words = {"differs": "differ"}  # a number before it is a plural
    parts = [f"{count} {words.get(status, status)}" for status, count in counts.items()]
    lines = [f"{show_count(len(found.tensors), 'tensor')}: {', '.join(parts)}"]
    if found.whole is not None:
        angle = f", angle {found.whole.angle:.3g} degrees" if found.whole.angle is not None else ""
        what = f"changes from {found.base}" if found.base is not None else "weights"
        lines.append(f"all {what} together: difference {found.whole.difference:.3g} (B from A){angle}")
    return lines


def layer_cells(row: GroupDifference) -> tuple[str, str, str]:
    """Return the cells of a layer."""
    return f"{row.difference:.3g}", "-" if row.angle is None else f"{row.angle:.3g}", row.name


def tensor_cells(row: TensorDifference) -> tuple[str, str, str]:
    """Return the cells of a tensor; its status where it cannot be compared."""
    difference = row.status if row.difference is None else f"{row.difference:.3g}"
    return difference, "-" if row.angle is None else f"{row.angle:.3g}", row.name


def show_value(value: object) -> str:
    """Return a value of a recipe as short JSON."""
    text = "(not set)" if value is None else json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS_OF_A_VALUE else text[: _MOST_CHARACTERS_OF_A_VALUE - 3] + "..."


def describe_shapes(row: TensorDifference) -> str:
    """Return "A 50x32, B 52x32", or the one shape."""
    shapes = {"A": row.shape_a, "B": row.shape_b}
    found = {side: "x".join(map(str, shape)) or "scalar" for side, shape in shapes.items() if shape is not None}
    return ", ".join(f"{side} {text}" for side, text in found.items()) if len(found) > 1 else next(iter(found.values()))


def _problem_lines(status: str, rows: list[TensorDifference], width: int | None) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{status} ({len(rows)})", *(f"  {row.name}: {describe_shapes(row)}" for row in rows[:_MOST_SHOWN])]
    more = [f"  and {len(rows) - _MOST_SHOWN} more; --json lists all"] if len(rows) > _MOST_SHOWN else []
    return wrapped_lines([*lines, *more], width)
