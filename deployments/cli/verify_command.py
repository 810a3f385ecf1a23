"""`eigenmerge verify`: is a merged checkpoint what its manifest says, and what its sources give?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from ...core.steps.verify_checkpoint import Verification

_DEFAULT_SAMPLE = 3
_DAMAGED, _NOT_CHECKED = 1, 2


def verify(
    checkpoint: Annotated[str, typer.Argument(metavar="OUT", help="Directory or URI of a merged checkpoint.")],
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=0, metavar="N", help="Tensors to compute again from base and experts. Default 3; 0: none."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="URI", help="Take spectra from this store instead of decomposing again."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Take `storage_options` from this recipe.")
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Check every file of OUT against its manifest and recompute a sample of its tensors.

    Exit code 0: fine. 1: damaged. 2: the sample that --sample asked for could not be computed.
    """
    from ...core.steps.read_recipe import read_recipe
    from ...core.steps.verify_checkpoint import verify_checkpoint
    from ...core.storage.store import Store

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
        print(json.dumps({**asdict(found), "problems": found.problems, "gaps": found.gaps}, indent=1))
    else:
        for line in _lines(found):
            print(line)
    if found.problems:
        raise typer.Exit(_DAMAGED)
    if found.gaps and sample:
        raise typer.Exit(_NOT_CHECKED)


def _lines(found: Verification) -> list[str]:
    lines = [f"{file.name}: fine ({file.how})" for file in found.files if not file.problems]
    for tensor in found.recomputed:
        if tensor.outcome in ("identical", "within tolerance"):
            close = f" (differs by {tensor.difference:.1g} of its largest value)" if tensor.difference else ""
            lines.append(f"{tensor.name}: recomputed, {tensor.outcome}{close}")
    lines += [f"not checked: {gap}" for gap in found.gaps]
    lines += [f"damaged: {problem}" for problem in found.problems]
    computed = sum(tensor.outcome != "not recomputed" for tensor in found.recomputed)
    verdict = f"{len(found.problems)} problems" if found.problems else "fine"
    lines.append(
        f"{found.destination}: {verdict}; {len(found.files) - 1} files, {found.num_tensors} tensors,"
        f" {computed} of them recomputed"
    )
    return lines
