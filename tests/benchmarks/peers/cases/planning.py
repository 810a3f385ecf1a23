"""Planning a mixture of 671 billion weights from real headers: seconds and memory of `eigenmerge plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..case import Case
from ..results import Figures
from ..timing import EIGENMERGE, program, run
from ..workplace import Workplace, all_cores, command_figures

NUM_PARENTS = 3


def cases(place: Workplace) -> Iterator[Case]:
    """Yield the plan of three parents over a base."""

    def plan() -> Figures:
        models = place.folder / "headers"
        if not models.exists():
            run(program("headers", str(models), str(NUM_PARENTS + 1)), all_cores())
        names = [str(models / f"model{index}") for index in range(NUM_PARENTS + 1)]
        recipe = place.folder / "plan.json"
        recipe.write_text(json.dumps({"merge_method": "swudi_a", "base_model": names[0], "models": names[1:]}))
        figures = command_figures([EIGENMERGE, "plan", str(recipe)], all_cores())
        return figures | {"tensors": _num_tensors(models / "model0")}

    # The first plan fills the page cache: a hole is slower to read than a file that is in it.
    label = f"DeepSeek-V3, {NUM_PARENTS} parents and a base"
    yield Case("planning", label, {"eigenmerge": plan}, num_runs=1, warmups=1)


def _num_tensors(model: Path) -> int:
    return len(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"])
