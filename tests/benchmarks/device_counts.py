"""Count what a GPU would do besides arithmetic: the table of docs/scale.md, by merges on a pretended device.

    python -m tests.benchmarks.device_counts
    python -m tests.benchmarks.device_counts --sites swudi_a          the lines of core that copy or wait
    python -m tests.benchmarks.device_counts --write docs/scale.md

One layer of 512 x 1024 in bfloat16, three experts. Nothing is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from eigenmerge import plan
from eigenmerge.core.planning.cost.crossing import bytes_to_device, bytes_to_host
from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.read_recipe import read_recipe
from tests.pretended_device.device_merges import WEIGHT, TensorCounts, merge_on_device, save_layer

BEGIN, END = "<!-- counts: written by tests/benchmarks/device_counts.py -->", "<!-- end of counts -->"
SHAPE = (512, 1024)
CASES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties"},
    "swudi_a": {"merge_method": "swudi_a"},
    "swudi_a, `spectra: none`": {"merge_method": "swudi_a", "spectra": "none"},
    "swudi_a, `spectra: top`": {"merge_method": "swudi_a", "spectra": "top"},
    "swudi_a, `side: both`": {"merge_method": "swudi_a", "parameters": {"side": "both"}},
    "swudi_a, `keep_sums`": {"merge_method": "swudi_a", "keep_sums": True},
    "iso_c": {"merge_method": "iso_c"},
    "tsv_m": {"merge_method": "tsv_m"},
    "task arithmetic, SVC": {"merge_method": "task_arithmetic", "calibration": {"svc": {}}},
}


def run(case: str, folder: Path) -> tuple[list[int], TensorCounts]:
    """Return the planned bytes to the device and to the host, and what a merge counts."""
    recipe = {**save_layer(folder / "models", SHAPE, dtype=torch.bfloat16), "dtype": "bfloat16", **CASES[case]}
    planned = next(t for shard in plan(recipe, device="cuda:0").shards for t in shard.tensors if t.name == WEIGHT)

    def pipeline(recipe: Any, out: Path, **keys: Any) -> Any:
        return merge_run(read_recipe(recipe), str(out), store=str(folder / "store"), **keys)

    _, counts = merge_on_device(pipeline, recipe, folder / "out")
    return [bytes_to_device(planned), bytes_to_host(planned)], counts


def table() -> str:
    lines = [
        "| merge | to the GPU, planned | counted | to the host, planned | counted | copies | waits | operations |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            planned, counts = run(case, Path(folder))
        found = counts.tensors[WEIGHT]
        cells = [*(f"{planned[0] / 1e6:.2f} MB", f"{found.to_device / 1e6:.2f} MB")]
        cells += [f"{planned[1] / 1e6:.2f} MB", f"{found.to_host / 1e6:.2f} MB"]
        lines.append(
            f"| {case} | " + " | ".join(cells) + f" | {found.copies} | {found.synchronizations} | {found.operations} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", metavar="CASE", choices=CASES, help="list the lines of core that copy or wait")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the table between the marks of this page")
    arguments = parser.parse_args()
    if arguments.sites is not None:
        with tempfile.TemporaryDirectory() as folder:
            _, counts = run(arguments.sites, Path(folder))
        for (file, line, operation), times in counts.ledger.sites.most_common():
            print(f"{times:5d}  core/{file}:{line}  {operation}")
        return
    found = table()
    print(found)
    if arguments.write is not None:
        text = arguments.write.read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        arguments.write.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{after}")


if __name__ == "__main__":
    main()
