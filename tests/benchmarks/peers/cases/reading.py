"""How fast experts are read: full ones and adapters, from the local disk and from the S3 test server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache, partial

from ..case import Case
from ..results import Figures
from ..timing import run_with_output
from ..workplace import all_cores

EXPERTS = ("full experts", "adapters")
PLACES = ("local disk", "S3, no delay", "S3, 5 ms")


def cases() -> Iterator[Case]:
    """Yield one case for each kind of expert and place; one process measures them all, each the best of three."""
    for experts in EXPERTS:
        for place in PLACES:
            yield Case("reading", f"{experts}, {place}", {"eigenmerge": partial(_figures, experts, place)}, num_runs=1)


def _figures(experts: str, place: str) -> Figures:
    return _measured()[f"{experts}, {place}"]


@cache
def _measured() -> dict[str, Figures]:
    command = [sys.executable, "-m", "tests.benchmarks.read_speed", "--delay", "5", "--json"]
    return json.loads(run_with_output(command, all_cores())[3])
