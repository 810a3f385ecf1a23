"""`eigenmerge report`: what a merge did, as text or as one HTML page: experts, interference, layers, warnings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..html_file import check_html_place, write_html
from ..options import JsonOption, RecipeForStoreOption, StoreOption, check_places, open_store
from ..report_lines import report_lines
from ..status import set_status
from ..table import terminal_width
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.output.read_manifest import Manifest


def report(
    merge: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Directory or URI of a merged checkpoint, or the key of a run."),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML page with charts of every layer.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="TENSOR", help="Show one tensor: its experts and its spectrum.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List all merged tensors.")] = False,
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report on a merge: what was merged, interference of every expert, rank of every layer, warnings in words.

    Reads the manifest of OUT, and from the store spectra, seconds and bytes, where it has the run. The page needs no
    network. Every merge writes such a page, without seconds, into its checkpoint.
    """
    set_status("reading the manifest and the store")
    from ....core.steps.read_recipe import read_recipe
    from ....core.steps.reading.find_run import read_merge
    from ....core.steps.reading.run_records import read_run_records
    from ....core.steps.reporting.costs import read_costs
    from ....core.steps.reporting.page import PAGE_MARK, report_page
    from ....core.steps.reporting.report import find_layer, make_report
    from ....core.steps.reporting.warn import report_warnings

    options = read_recipe(recipe).storage_options if recipe is not None else None
    check_places(options, OUT=merge)
    opened = open_store(store, recipe)
    manifest, place = read_merge(merge, opened, options)
    if html is not None:
        check_html_place(html, PAGE_MARK, "report")
        _check_is_no_part(html, place, manifest)
    records = read_run_records(opened, manifest.run_key)
    found = make_report(manifest, records, read_costs(opened, manifest.run_key))
    chosen = find_layer(found, layer) if layer is not None else None
    if html is not None:
        write_html(html, report_page(found))
    if as_json:
        data = asdict(found)
        show_json(data | {"warnings": report_warnings(found)} if chosen is None else asdict(chosen))
        return
    show(*report_lines(found, terminal_width(), chosen=chosen, all_tensors=tensors))
    if html is not None:
        show(f"written: {html}")


def _check_is_no_part(html: Path, place: str, manifest: Manifest) -> None:
    """Refuse to replace the page in the checkpoint, whose sha256 is in the manifest."""
    from ....core.errors import DestinationError
    from ....core.formats.file_names import REPORT_NAME

    if REPORT_NAME in manifest.side_files and html.resolve() == (Path(place) / REPORT_NAME).resolve():
        raise DestinationError(
            f"--html {html}: is a file of the checkpoint, which `eigenmerge verify` compares with its manifest; choose"
            " another name"
        )
