"""`eigenmerge verify`: check the files of a merged checkpoint, and recompute a sample of its tensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import DeviceOption, JsonOption, show_count
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.steps.verification.verify_checkpoint import Verification

_DEFAULT_SAMPLE = 3
_DAMAGED, _NOT_CHECKED = 1, 2


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="OUT", help="Directory or URI of a merged checkpoint.", show_default=False)
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
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Check every file of OUT against its manifest and recompute a sample of its tensors.

    Exit code 0: no problem found. 1: damaged. 2: the sample requested by --sample could not be recomputed.
    """
    from ....core.steps.read_recipe import read_recipe
    from ....core.steps.verification.verify_checkpoint import verify_checkpoint
    from ....core.storage.store import Store

    options = read_recipe(recipe).storage_options if recipe is not None else None
    count = _DEFAULT_SAMPLE if sample is None else sample
    found = verify_checkpoint(
        Store(checkpoint, options),
        sample=count,
        spectra=Store(store, options) if store is not None else None,
        storage_options=options,
        device=device,
    )
    if as_json:
        show_json({**asdict(found), "problems": found.problems, "gaps": found.gaps})
    else:
        show(*_result_lines(found))
    if found.problems:
        raise typer.Exit(_DAMAGED)
    if found.gaps and sample:
        raise typer.Exit(_NOT_CHECKED)


def _result_lines(found: Verification) -> list[str]:
    lines = [f"{file.name}: ok ({file.how})" for file in found.files if not file.problems]
    for tensor in found.recomputed:
        if tensor.outcome in ("identical", "within tolerance"):
            distance = f" (differs by {tensor.difference:.1g} of its largest value)" if tensor.difference else ""
            lines.append(f"{tensor.name}: recomputed, {tensor.outcome}{distance}")
    lines += [f"not checked: {gap}" for gap in found.gaps]
    lines += [f"damaged: {problem}" for problem in found.problems]
    computed = sum(tensor.outcome != "not recomputed" for tensor in found.recomputed)
    verdict = show_count(len(found.problems), "problem") if found.problems else "ok"
    lines.append(
        f"{found.destination}: {verdict}; {show_count(len(found.files) - 1, 'file')},"
        f" {show_count(found.num_tensors, 'tensor')}, {computed} of them recomputed"
    )
    return lines
