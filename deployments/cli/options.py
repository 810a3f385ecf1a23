"""Options that several subcommands share, and the conversion of their values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.choices import RunnerName
from ...core.errors import RecipeError
from ..python_arguments import number_of_bytes

if TYPE_CHECKING:
    from ...core.storage.store import Store

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Path or URI of a recipe in YAML, or its text.", show_default=False)
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="EIGENMERGE_STORE",
        metavar="URI",
        help="Directory or URI (s3://...) that keeps spectra and finished shards. Default: `store` of the recipe, else"
        " ~/.cache/eigenmerge.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda (all GPUs of this machine), or one GPU such as cuda:1."),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Memory for all workers of this machine together, such as 16GB. It is an error if one tensor needs more.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, metavar="N", help="Shards to compute at the same time. Default: one per core or GPU."
    ),
]
RunnerOption = Annotated[
    RunnerName | None,
    typer.Option("--runner", help="Where to compute shards. Default: `runner` of the recipe, else threads."),
]
NoPrefectOption = Annotated[
    bool, typer.Option("--no-prefect", help="Compute in threads of this process, without a Prefect server.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
AllowNonfiniteOption = Annotated[
    bool,
    typer.Option(
        "--allow-nonfinite", help="Where an expert has NaN or Inf, keep the base's tensor and print a warning."
    ),
]
AllowMixedOption = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-architectures",
        "--allow-crimes",
        help="Merge models whose config.json describe different architectures, as `allow_mixed_architectures` of the"
        " recipe does.",
    ),
]
RecipeForStoreOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="Recipe that gives `store` and `storage_options`."),
]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def open_store(store: str | None, recipe: str | None) -> Store:
    """Return the store of the option, else that of the recipe, else the default store.

    Raises
    ------
    RecipeError : the recipe cannot be read, or the address contains credentials
    StoreError : the address is not one of a store, or its server does not answer
    """
    from ...core.formats.store_folders import DEFAULT_STORE
    from ...core.steps.read_recipe import read_recipe
    from ...core.storage.store import Store

    read = read_recipe(recipe) if recipe is not None else None
    address = store or (read.store if read is not None else None) or DEFAULT_STORE
    options = read.storage_options if read is not None else None
    check_places(options, store=address)
    return Store(address, options)


def open_existing_store(store: str | None, recipe: str | None) -> Store:
    """Return the store as `open_store` does, after a check that the place is one.

    Raises
    ------
    NoStoreError : the place is not a store
    """
    from ...core.cache.store_marker import require_store

    opened = open_store(store, recipe)
    require_store(opened)
    return opened


def parse_age(text: str | None) -> float | None:
    """Return the seconds of "7d", "12h", "90m" or "2w"; None for None.

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
    """Return the bytes of "16GB", "500MiB" or "1000000"; None for None.

    Raises
    ------
    RecipeError : not a size
    """
    return number_of_bytes("--max-memory", text)


def check_addresses(**addresses: str | None) -> None:
    """Check that addresses contain no credentials, because Prefect records them as parameters of a run.

    Parameters
    ----------
    addresses : by the name of their option, for the message

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


def check_places(storage_options: Mapping[str, Any] | None, **addresses: str | None) -> None:
    """Check that addresses which a command reads contain no credentials, and that their servers answer.

    Without the second check the patient retries of a run would let a command wait for a minute.

    Raises
    ------
    RecipeError : credentials in one of them
    StoreError : a server does not answer
    """
    from ...core.storage.reachable import check_reachable

    check_addresses(**addresses)
    check_reachable([address for address in addresses.values() if address], storage_options)


def show_bytes(count: float) -> str:
    """Return a size such as "12.3 GB": decimal units, three significant digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def show_seconds(seconds: float) -> str:
    """Return a duration such as "8.1 s", "2 min 05 s" or "3 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes = int(seconds + 0.5) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds + 0.5) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def show_count(number: int, noun: str) -> str:
    """Return "1 shard" or "2 shards"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
