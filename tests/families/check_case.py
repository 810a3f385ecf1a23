"""Merge a case, load the result with transformers, and compare its outputs with the expected model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from eigenmerge.core.errors import EigenmergeError
from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.read_recipe import read_recipe

from ..quiet_libraries import suppress_messages
from .families import Family
from .forms import FORMS, Case, NotApplicable

TOLERANCE = 1e-4


def check_form(family: Family, form: str, folder: Path) -> str:
    """Return "yes", "-" (the family has no such form), or what went wrong in one line."""
    try:
        with suppress_messages():
            case = FORMS[form](family, folder)
    except NotApplicable:
        return "-"
    try:
        merge(case, folder / "merged", folder / "store")
    except EigenmergeError as error:
        return f"refused: {error}"
    with suppress_messages():
        return compare(family, case, folder / "merged")


def merge(case: Case, out: Path, store: Path) -> None:
    """Merge the case: the mean of the task vectors, or the case's spectral method."""
    recipe: dict[str, Any] = {
        "merge_method": case.method,
        "base_model": str(case.base),
        "models": [str(path) for path in case.experts],
    }
    if case.method == "task_arithmetic":
        recipe["parameters"] = {"scale": 1 / len(case.experts)}
    merge_run(read_recipe(recipe), str(out), store=str(store))


def compare(family: Family, case: Case, out: Path) -> str:
    """Return "yes" if transformers loads the checkpoint whole and it computes what is expected."""
    model, info = type(case.expected).from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            return f"{kind}: {sorted(map(str, info[kind]))[:3]}"
    loaded = dict(model.named_parameters())
    for name, value in case.expected.named_parameters():
        if not _is_close(loaded[name], value):
            return f"{name} differs"
    return "yes" if _is_close(family.forward(model.eval()), family.forward(case.expected)) else "outputs differ"


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())
