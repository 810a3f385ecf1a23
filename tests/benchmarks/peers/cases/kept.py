"""Another filter over kept spectra: a merge that decomposes, then one that does not; and the size of the spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..case import Case
from ..results import Figures
from ..workplace import Workplace

NUM_EXPERTS = 3


def cases(place: Workplace) -> Iterator[Case]:
    """Yield one case for each size of the model; the larger one also keeps its spectra in the compact form."""
    yield Case("kept", f"70 MB, {NUM_EXPERTS} experts", _contenders(place, "70 MB"), num_runs=2, num_checks=2)
    large = _contenders(place, "400 MB")
    large["top"] = lambda: _merge(place, "400 MB", "swudi_a", spectra="top", store="top", keep_store=False)
    yield Case("kept", f"400 MB, {NUM_EXPERTS} experts", large, num_runs=1)


def _contenders(place: Workplace, size: str) -> dict[str, Callable[[], Figures]]:
    """Return what takes turns: `start` decomposes nothing and has nearly no weights; `second` reads what `first` kept.

    All run without Prefect, whose start would hide the difference.
    """
    return {
        "start": lambda: _merge(place, "7 MB", "linear", keep_store=False),
        "first": lambda: _merge(place, size, "swudi_a", keep_store=False),
        "second": lambda: _merge(place, size, "swudi", keep_store=True),
    }


def _merge(
    place: Workplace, size: str, method: str, *, keep_store: bool, spectra: str = "full", store: str = "store"
) -> Figures:
    models = place.models(size, NUM_EXPERTS)
    keys = {} if method == "linear" else {"spectra": spectra}
    recipe = place.recipe(models, method, NUM_EXPERTS, **keys)
    figures = place.merge(recipe, "--no-prefect", keep_store=keep_store, store=store)
    weights = (models / "base" / "model.safetensors").stat().st_size
    return figures | {"weights": weights, "spectra": folder_bytes(place.folder / store / "spectra")}


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
