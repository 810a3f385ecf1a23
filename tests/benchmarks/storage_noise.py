"""How far storage in bfloat16 moves the merge of real experts, with each handling of the rounding.

    python tests/benchmarks/storage_noise.py --base .demo/base --experts .demo/experts/*

The base is rounded to bfloat16 once. Each expert's change (float32) is used as it is, smaller as after a light tuning,
or reduced to rank 8 as of an adapter, added to that base, and rounded. Printed is the median over weights of the error
of the merged delta relative to the merge of the unrounded experts, for `storage_noise: ignore`, `cut` and `shrink`.
`make demo` trains such experts in .demo.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from eigenmerge.core import merge_task_vectors

METHODS = (
    "iso_c",
    "iso_cts",
    "tsv_m",
    "subspace_boosting",
    "star",
    "core_space",
    "swudi_a",
    "wudi_pinv",
    "swudi",
    "ace",
)
CASES = ("as trained", "1/10", "1/50", "rank 8", "rank 8, 1/10")
HANDLINGS = ("ignore", "cut", "shrink")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder with model.safetensors of the base")
    parser.add_argument("--experts", type=Path, nargs="+", required=True, help="folders of the experts")
    parser.add_argument("--weights", type=int, default=12, help="number of weights, evenly spread over the layers")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_file(options.base / "model.safetensors")
    experts = [load_file(folder / "model.safetensors") for folder in options.experts if folder.is_dir()]
    names = sorted(name for name, tensor in base.items() if tensor.ndim == 2 and "layer" in name)
    names = names[:: max(1, len(names) // options.weights)]
    print(f"{len(experts)} experts, {len(names)} weights, torch {torch.__version__}")
    print("| change | rounding | method | " + " | ".join(HANDLINGS) + " |\n|---|---|---|" + "---|" * len(HANDLINGS))
    for case in options.cases:
        changes = {name: [changed(expert[name] - base[name], case) for expert in experts] for name in names}
        sizes, errors = [], {(method, handling): [] for method in options.methods for handling in HANDLINGS}
        for name, exact in changes.items():
            stored_base = base[name].bfloat16().double()
            stored = [(stored_base + v).bfloat16().double() - stored_base for v in exact]
            sizes += [distance(a, b) for a, b in zip(stored, exact, strict=True)]
            for method in options.methods:
                wanted = merge_task_vectors([v.float() for v in exact], method)
                for handling in HANDLINGS:
                    found = merge_task_vectors(
                        [v.float() for v in stored],
                        method,
                        base=stored_base,
                        stored_as=torch.bfloat16,
                        storage_noise=handling,
                    )
                    errors[method, handling].append(distance(found, wanted))
        for method in options.methods:
            row = " | ".join(f"{median(errors[method, handling]):.3f}" for handling in HANDLINGS)
            print(f"| {case} | {median(sizes):.3f} | {method} | {row} |", flush=True)


def changed(delta: torch.Tensor, case: str) -> torch.Tensor:
    delta = delta.double()
    if case.startswith("rank 8"):
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        delta = (left[:, :8] * values[:8]) @ right[:8]
    return delta / (50 if case.endswith("1/50") else 10 if case.endswith("1/10") else 1)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


if __name__ == "__main__":
    main()
