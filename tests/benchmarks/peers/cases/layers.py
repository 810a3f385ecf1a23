"""SWUDI of one layer against the published algorithm: CPU seconds, and memory beyond the inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from ..case import Case
from ..results import Figures
from ..timing import program, run_with_output
from ..workplace import one_core

SHAPES = ((8192, 2048), (2048, 2048), (1024, 4096))
CONTENDERS = ("eigenmerge", "published")


def cases() -> Iterator[Case]:
    """Yield the layers; each run is a process of its own with one thread."""
    for rows, columns in SHAPES:
        contenders = {name: partial(_run_layer, name, rows, columns) for name in CONTENDERS}
        yield Case("layers", f"{rows} x {columns}", contenders, num_runs=2, num_checks=2)


def _run_layer(contender: str, rows: int, columns: int) -> Figures:
    command = program("one_layer", contender, str(rows), str(columns))
    return json.loads(run_with_output(command, one_core())[3])
