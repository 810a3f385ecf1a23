"""Measure how merges grow: CPU seconds, wall seconds and peak memory of whole commands in processes of their own.

    python tests/benchmarks/growth/growth.py --json tests/benchmarks/growth/growth.json --page docs/growth.md
    python tests/benchmarks/growth/growth.py --only lora --json FILE    also: experts, layers, width, kept
    python tests/benchmarks/growth/growth.py --page docs/growth.md --json FILE --only none    write the page again

Models are written to a temporary folder (--work): 3 GB for the axes, 16 GB with the spectra for the row of 100
adapters. One worker (two for the adapters), an empty store, no Prefect server, whose start costs the same every time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from models import Size, write_models  # noqa: E402
from peers.timing import EIGENMERGE, machine, run  # noqa: E402

METHODS = ("linear", "swudi_a")
EXPERTS = 4
BASE = Size(hidden=512, inner=1408, layers=4)
#: 1.04 billion weights with the shapes of a Llama of 16 layers.
BILLION = Size(hidden=2048, inner=8192, layers=16, vocabulary=32000, kv=512)
ADAPTERS = 100


@dataclass(frozen=True, slots=True)
class Point:
    """One merge.

    axis : "experts", "layers", "width", "kept" or "lora"
    value : number of experts or layers, or the input dimensions D2 of the attention; 0 for the rows of no axis
    cpu, wall : seconds; peak : MB of resident memory of the largest process
    """

    axis: str
    method: str
    value: int
    cpu: float
    wall: float
    peak: float


def axes() -> dict[str, list[tuple[int, Size, int]]]:
    """Return for each axis its values, with the model and the number of experts of each."""
    width = [(hidden, Size(hidden, hidden * 11 // 4, 2), EXPERTS) for hidden in (128, 256, 512, 1024)]
    return {
        "experts": [(count, BASE, count) for count in (1, 2, 4, 8, 16, 32, 64)],
        "layers": [(layers, Size(BASE.hidden, BASE.inner, layers), EXPERTS) for layers in (1, 2, 4, 8)],
        "width": width,
    }


def models_in(folder: Path, size: Size, num_experts: int, num_adapters: int = 0) -> Path:
    """Write models that are not there yet, in another process: the peak of a command counts that of its parent."""
    target = folder / f"{size.hidden}-{size.inner}-{size.layers}-{size.vocabulary}"
    writer = get_context("spawn").Process(target=write_models, args=(target, size, num_experts, num_adapters))
    writer.start()
    writer.join()
    assert writer.exitcode == 0, "the models could not be written"
    return target


def merge(work: Path, recipe: dict[str, Any], *options: str, keep_store: bool = False) -> tuple[float, float, float]:
    """Return CPU seconds, wall seconds and peak MB of one merge into an empty folder."""
    text, out, store = work / "recipe.yml", work / "out", work / "store"
    text.write_text(json.dumps({"dtype": "bfloat16", **recipe}))
    for folder in (out,) if keep_store else (out, store):
        shutil.rmtree(folder, ignore_errors=True)
    command = [EIGENMERGE, "merge", str(text), str(out), "--store", str(store)]
    return run([*command, "--quiet", "--no-prefect", *options], environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def full_recipe(folder: Path, method: str, num_experts: int, **keys: Any) -> dict[str, Any]:
    models = [{"model": str(folder / f"expert{index}")} for index in range(num_experts)]
    base = {} if method == "linear" else {"base_model": str(folder / "base")}
    weights = {"parameters": {"weight": 1.0 / num_experts}} if method == "linear" else {}
    return {"merge_method": method, "models": models, **base, **weights, **keys}


def measure(work: Path, chosen: Sequence[str]) -> Iterator[Point]:
    """Yield the points of the chosen axes and rows."""
    for axis, values in axes().items():
        for value, size, count in values if axis in chosen else ():
            folder = models_in(work, size, count)
            for method in METHODS:
                yield Point(axis, method, value, *merge(work, full_recipe(folder, method, count), "--workers", "1"))
        for folder in work.glob("*-*"):  # the models of one axis at a time
            shutil.rmtree(folder)
    if "kept" in chosen:
        folder = models_in(work, Size(1024, 4096, 2), EXPERTS)
        yield Point("kept", "linear", 0, *merge(work, full_recipe(folder, "linear", EXPERTS), "--workers", "1"))
        for method in ("swudi_a", "swudi"):
            recipe = full_recipe(folder, method, EXPERTS)
            taken = merge(work, recipe, "--workers", "1", keep_store=method == "swudi")
            yield Point("kept", method, 0, *taken)
        shutil.rmtree(folder)
    if "lora" in chosen:
        folder = models_in(work, BILLION, 0, ADAPTERS)
        base = str(folder / "base")
        adapters = [{"model": f"{base}+{folder}/adapter{index}"} for index in range(ADAPTERS)]
        recipe = {"merge_method": "swudi_a", "base_model": base, "models": adapters}
        yield Point("lora", "swudi_a", ADAPTERS, *merge(work, recipe, "--workers", "2"))


def main(arguments: Sequence[str] | None = None) -> None:
    names = [*axes(), "kept", "lora"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*names, "none"], action="append", help="default: all")
    parser.add_argument("--json", type=Path, required=True, help="points; those of other axes stay")
    parser.add_argument("--page", type=Path, help="write the page, and its plots into images/ beside it")
    parser.add_argument("--note", help="what to know of the machine during the measurement")
    parser.add_argument("--work", type=Path, help="folder for the models; default: a temporary one")
    given = parser.parse_args(arguments)
    content = json.loads(given.json.read_text()) if given.json.exists() else {"points": []}
    points = {(one["axis"], one["method"], one["value"]): Point(**one) for one in content["points"]}
    with tempfile.TemporaryDirectory(prefix="eigenmerge-growth-", dir=given.work) as name:
        for point in measure(Path(name), given.only or names):
            print(point, flush=True)
            points[point.axis, point.method, point.value] = point
            content = {
                "machine": machine(),
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "versions": {package: version(package) for package in ("eigenmerge", "torch")},
                "points": [asdict(one) for one in points.values()],
                "note": given.note or content.get("note", ""),
            }
            given.json.write_text(json.dumps(content, indent=1) + "\n")
    if given.page is not None:
        from page import write_page

        write_page(given.page, content)


if __name__ == "__main__":
    main()
