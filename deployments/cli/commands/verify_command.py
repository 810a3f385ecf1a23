"""`eigenmerge verify`: check the files of a checkpoint, recompute a sample of its tensors, and load it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ....core.formats.file_names import MANIFEST_NAME
from ..options import DeviceOption, JsonOption, check_places, show_count
from ..status import set_status
from ..table import terminal_width, wrapped_lines
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.steps.verification.verify_checkpoint import Verification

_DEFAULT_SAMPLE = 3
_DAMAGED, _NOT_CHECKED = 1, 2


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="OUT", help="Directory or URI of a checkpoint.", show_default=False)
    ],
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=0, metavar="N", help="Number of tensors to recompute from base and experts. Default: 3."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="URI", help="Use the spectra of this store instead of decomposing again."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Recipe that gives `storage_options`.")
    ] = None,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Look for NaN and Inf, and load OUT with transformers.")
    ] = True,
    generate: Annotated[
        int, typer.Option("--generate", min=0, max=1000, metavar="N", help="Generate N tokens with OUT.")
    ] = 0,
    perplexity: Annotated[
        bool | None,
        typer.Option(
            "--perplexity/--no-perplexity",
            help="Compare the perplexity of a short English text with that of base and experts. Default: for small"
            " models that are on this machine.",
        ),
    ] = None,
    run_model_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Execute the Python files of a model that brings its own architecture."
        ),
    ] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Check every file of OUT against its manifest, recompute a sample of its tensors, and load it.

    Of a checkpoint that Eigenmerge did not write, only loading is checked.

    Exit code 0: no problem found. 1: a problem. 2: what an option asked for could not be checked.
    """
    set_status("reading the manifest")
    from ....core.steps.loading.load_check import LoadOptions
    from ....core.steps.read_recipe import read_recipe
    from ....core.steps.verification.verify_checkpoint import verify_checkpoint
    from ....core.storage.store import Store

    options = read_recipe(recipe).storage_options if recipe is not None else None
    check_places(options, OUT=checkpoint, store=store)
    count = _DEFAULT_SAMPLE if sample is None else sample
    found = verify_checkpoint(
        Store(checkpoint, options),
        sample=count,
        spectra=Store(store, options) if store is not None else None,
        storage_options=options,
        device=device,
        load=LoadOptions(generate, perplexity, run_model_code, device) if load else None,
        on_step=set_status,
    )
    if as_json:
        show_json({**asdict(found), "problems": found.problems, "gaps": found.gaps})
    else:
        show(*wrapped_lines(_result_lines(found), terminal_width()))
    if found.problems:
        raise typer.Exit(_DAMAGED)
    not_recomputed = found.not_recomputed or any(one.outcome == "not recomputed" for one in found.recomputed)
    not_loaded = any(check.outcome == "not checked" and check.requested for check in found.loading)
    if not_loaded or (sample and (not_recomputed or not found.files)):
        raise typer.Exit(_NOT_CHECKED)


def _result_lines(found: Verification) -> list[str]:
    lines = [f"{file.name}: ok ({file.how})" for file in found.files if not file.problems]
    for tensor in found.recomputed:
        if tensor.outcome in ("identical", "within tolerance"):
            distance = f" (differs by {tensor.difference:.1g} of its largest value)" if tensor.difference else ""
            lines.append(f"{tensor.name}: recomputed, {tensor.outcome}{distance}")
    lines += [f"{check.name}: ok ({check.detail})" for check in found.loading if check.outcome == "ok"]
    lines += [f"not checked: {gap}" for gap in found.gaps]
    if not found.files:
        lines.append(f"not checked: files and tensors, because there is no {MANIFEST_NAME}: not a merge of Eigenmerge")
    lines += [f"damaged: {problem}" for problem in found.problems]
    computed = sum(tensor.outcome != "not recomputed" for tensor in found.recomputed)
    verdict = show_count(len(found.problems), "problem") if found.problems else "ok"
    if not found.files:
        return [*lines, f"{found.destination}: {verdict}"]
    lines.append(
        f"{found.destination}: {verdict}; {show_count(len(found.files) - 1, 'file')},"
        f" {show_count(found.num_tensors, 'tensor')}, {computed} of them recomputed"
    )
    return lines
