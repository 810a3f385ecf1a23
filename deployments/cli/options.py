"""Options that several subcommands share, and the values users write for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.errors import RecipeError

if TYPE_CHECKING:
    from ...core.storage.store import Store

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
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1. `cuda` uses every GPU of this machine.")
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="What all workers together may use, e.g. 16GB. The plan fails if it cannot.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Shards computed at once. Default: one per core or GPU.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output instead of text.")]
AllowNonfiniteOption = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Where an expert holds NaN or Inf, keep the base's tensor and say so.")
]


RecipeForStoreOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="Take `store` and `storage_options` from this recipe."),
]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def open_store(store: str | None, recipe: str | None) -> Store:
    """The store that a command looks into: as named, else the recipe's, else the default."""
    from ...core.formats.store_folders import DEFAULT_STORE
    from ...core.steps.read_recipe import read_recipe
    from ...core.storage.store import Store

    read = read_recipe(recipe) if recipe is not None else None
    place = store or (read.store if read is not None else None) or DEFAULT_STORE
    return Store(place, read.storage_options if read is not None else None)


def parse_age(text: str | None) -> float | None:
    """Seconds of "7d", "12h", "90m" or "2w"; None stays None.

    Raises
    ------
    RecipeError : not an age
    """
    if text is None:
        return None
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"--older-than {text!r}: expected a number and s, m, h, d or w, such as 7d")
    return float(found[1]) * _SECONDS[found[2]]


def parse_size(text: str | None) -> int | None:
    """Bytes of "16GB", "500MiB" or "1000000"; None stays None.

    Raises
    ------
    RecipeError : not a size
    """
    from ...core.recipe.fields import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise RecipeError(f"--max-memory {error}") from None


def check_addresses(**addresses: str | None) -> None:
    """Addresses that Prefect will record as parameters, by the name of their option.

    Raises
    ------
    RecipeError : credentials in one of them
    """
    from ...core.recipe.fields import refuse_credentials

    for name, address in addresses.items():
        try:
            refuse_credentials(address or "")
        except ValueError as error:
            raise RecipeError(f"{name}: {error}") from None


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
