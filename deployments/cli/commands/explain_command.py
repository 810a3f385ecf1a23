"""`eigenmerge explain`: what was done with one tensor of a merge, why, from which experts, and where it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..options import JsonOption, RecipeForStoreOption, StoreOption, check_places, open_store
from ..status import set_status
from ..table import terminal_width, wrapped_lines
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.steps.reading.explain_tensor import Explanation

_MOST_EXPERTS_SHOWN = 40


def explain(
    checkpoint: Annotated[
        str, typer.Argument(metavar="OUT", help="Directory or URI of a merged checkpoint.", show_default=False)
    ],
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Name of one of its tensors.", show_default=False)],
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    sources: Annotated[
        bool,
        typer.Option("--sources/--no-sources", help="List what is read of each model, which needs their headers."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Explain one tensor of a merge: action, experts, parameters with their places in the recipe, rank, store objects.

    Reads the manifest of OUT; eigenvalues and shares come from the store, where it has the run.
    """
    set_status("reading the manifest and the store")
    from ....core.output.read_manifest import read_manifest
    from ....core.steps.read_recipe import read_recipe
    from ....core.steps.reading.explain_tensor import explain_tensor, find_tensor
    from ....core.steps.reading.run_records import read_run_records
    from ....core.storage.store import Store

    options = read_recipe(recipe).storage_options if recipe is not None else None
    check_places(options, OUT=checkpoint)
    manifest = read_manifest(Store(checkpoint, options))
    find_tensor(manifest, tensor)  # before the store is asked
    opened = open_store(store, recipe)
    records = read_run_records(opened, manifest.run_key)
    set_status("reading the headers of the models" if sources else "reading the store")
    found = explain_tensor(manifest, tensor, records, opened, sources=sources, storage_options=options)
    if as_json:
        show_json(found.as_dict() | {"store": records.place})
        return
    show(*wrapped_lines(explanation_lines(found, records.place), terminal_width()))


def explanation_lines(found: Explanation, store: str) -> list[str]:
    """Return the text of an explanation."""
    tensor = found.tensor
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    arithmetic = f", computed in {tensor.arithmetic}" if tensor.arithmetic else ""
    done = f"merged by {tensor.method}" if tensor.method else _ACTIONS.get(tensor.action, tensor.action)
    lines = [f"{tensor.name}  {shape} {tensor.dtype}{arithmetic}", f"  what     {done}", f"  why      {tensor.reason}"]
    if tensor.stored_as:
        lines.append(f"  stored   as {', '.join(tensor.stored_as)}")
    for title, value in (("error", tensor.error), ("left out", tensor.truncation_error)):
        lines += [f"  {title:8} {value:.3g} of its norm"] if value is not None else []
    lines += [f"  note     {note}" for note in tensor.notes]
    if found.parameters:
        lines.append("parameters")
        lines += [f"  {fact.name} {fact.value}: {fact.origin}" for fact in found.parameters if fact.value is not None]
    lines += _rank_lines(found)
    lines += _expert_lines(found)
    if found.objects:
        lines.append(f"objects in {store}")
        lines += [f"  {key}{'' if there else ': not there (any more)'}" for key, there in found.objects]
    return lines


_ACTIONS = {
    "mean": "the base plus the mean of the experts' changes",
    "copy": "the base's tensor, copied",
    "merge": "merged",
}


def _rank_lines(found: Explanation) -> list[str]:
    lines: list[str] = []
    for row in found.ranks:
        of = f" of {row.directions}" if row.directions is not None else ""
        energy = f", which hold {row.energy:.2%} of the eigenvalue sum" if row.energy is not None else ""
        part = row.name.removeprefix(found.tensor.name)
        lines.append(f"rank{' ' + part if part else ''}  {row.rank}{of} directions{energy}")
        lines.append(f"  why      {row.why}")
        if row.last_kept is not None:
            dropped = f"first dropped {row.first_dropped:.3g}" if row.first_dropped is not None else "none is dropped"
            lines.append(f"  cut      last kept eigenvalue {row.last_kept:.3g} of the largest, {dropped}")
    if found.ranks and found.no_spectra:
        lines.append(f"  eigenvalues: {found.no_spectra}; --store names the store of the merge")
    return lines


def _expert_lines(found: Explanation) -> list[str]:
    if found.tensor.action == "copy":
        return [f"base  {found.base}", *(f"  read     {text}" for text in found.base_sources)]
    lines = [f"experts ({len(found.experts)})"]
    for fact in found.experts[:_MOST_EXPERTS_SHOWN]:
        if fact.weight is None:
            lines.append(f"  {fact.name}: takes no part in this tensor, or its weight is not recorded")
        else:
            share = f", {fact.share:.1%} of the squared norms of the changes" if fact.share is not None else ""
            lines.append(f"  {fact.name}: weight {fact.weight:g} ({fact.origin}){share}")
        lines += [f"    read {text}" for text in fact.sources]
    if len(found.experts) > _MOST_EXPERTS_SHOWN:
        lines.append(f"  and {len(found.experts) - _MOST_EXPERTS_SHOWN} more; --json lists all")
    if found.base is not None:
        lines += [f"base  {found.base}", *(f"    read {text}" for text in found.base_sources)]
    if found.not_planned:
        lines.append(f"what was read is not listed: {found.not_planned}")
    return lines
