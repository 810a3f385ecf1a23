"""Options that several subcommands share, and the values users write for them."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from ...core.errors import RecipeError

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe: mergekit YAML and more keys.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="EIGENMERGE_STORE",
        metavar="URI",
        help="Where spectra and finished parts are kept (directory, s3://...). The same store resumes a run."
        " Default: the recipe's `store`, else ~/.cache/eigenmerge.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1. `cuda` uses every GPU of this machine.")]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="What all workers together may use, e.g. 16GB. The plan fails if it cannot."),
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Shards computed at once. Default: one per core or GPU.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output instead of text.")]
AllowNonfiniteOption = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Where an expert holds NaN or Inf, keep the base's tensor and say so.")
]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(text: str | None) -> int | None:
    """Bytes of "16GB", "500MiB" or "1000000"; None stays None.

    Raises
    ------
    RecipeError : not a size
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise RecipeError(f"{text!r} is not a size; write a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, e.g. 16GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def show_bytes(count: float) -> str:
    """12.3 GB: decimal units, three significant digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def show_seconds(seconds: float) -> str:
    """8.1 s, 2 min 05 s, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes = int(seconds + 0.5) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds + 0.5) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
