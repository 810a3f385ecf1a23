"""`eigenmerge extract`: make a LoRA adapter of a full fine-tune, and print its error per layer."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import JsonOption, check_places, show_bytes, show_count
from ..table import table_lines
from ..terminal import show, show_json


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before the fine-tuning.", show_default=False)],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The full fine-tune of BASE.", show_default=False)],
    destination: Annotated[
        str, typer.Argument(metavar="OUT", help="Directory or URI of the adapter; must be empty.", show_default=False)
    ],
    rank: Annotated[int | None, typer.Option("--rank", metavar="R", min=1, help="Largest rank of each layer.")] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", metavar="E", help="Smallest rank of each layer with a relative error below E."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the factors: float32, bfloat16 or float16.")] = "float32",
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", metavar="GLOB", help="Tensors whose change is left out. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a PEFT LoRA adapter OUT that turns BASE approximately into TUNED.

    Changed norms, embeddings and biases are stored whole, without error. What an adapter cannot hold is an error.
    """
    from ....core.extraction.extract_adapter import extract_adapter

    check_places(None, BASE=base, TUNED=tuned, OUT=destination)
    result = extract_adapter(
        base, tuned, destination, rank=rank, max_error=max_error, dtype=dtype, leave_out=leave_out or ()
    )
    if as_json:
        show_json(result.to_dict())
        return
    rows = [
        (item.name, item.form, str(item.rank or ""), f"{item.norm:.3g}", f"{item.error:.2%}") for item in result.tensors
    ]
    show(*table_lines(("tensor", "form", "rank", "change", "error"), rows))
    changed = show_count(len(result.tensors), "tensor")
    show(
        f"Extracted {changed} of {result.num_tensors}; {result.num_unchanged} are unchanged",
        f"  output: {result.destination} ({show_bytes(result.num_bytes)})",
        f"  error: {result.error:.2%} of the whole change",
    )
