"""Write mergekit.safetensors and mergekit.json: small inputs and the results of mergekit's methods for them.

Run in a virtual environment with mergekit==0.1.5:  python make_mergekit_golden.py

Deterministic methods only, in float32 and float64. Inputs are stored as `inputs/SET/base` and `inputs/SET/EXPERT` in
float32, results as `CASE/float32` and `CASE/float64`; the JSON file has the method and parameters of each case.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorEntry, TensorGroup
from safetensors.torch import save_file

HERE = Path(__file__).parent
DTYPES = {"float32": torch.float32, "float64": torch.float64}
Case = dict[str, Any]


def make_inputs() -> dict[str, list[torch.Tensor]]:
    """Return the tensors [base, expert 0, expert 1, ...] of every set, float32."""
    generator = torch.Generator().manual_seed(20240607)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def near(base: torch.Tensor, scale: float, count: int) -> list[torch.Tensor]:
        common = normal(*base.shape)
        return [base, *(base + scale * (0.4 * common + normal(*base.shape)) for _ in range(count))]

    sets = {
        "matrix": near(normal(12, 10), 0.3, 5),
        "vector": near(normal(33), 0.3, 4),
        "conv": near(normal(5, 4, 3, 3), 0.3, 3),
        # norms of rows around 1e-3: mergekit's lower bound of ||v_i|| ||v_j|| takes effect for some pairs
        "faint": near(torch.zeros(9, 7), 3e-4, 5),
        # entries of equal magnitude; at most 16 of them, so that every sort of torch is stable
        "grid": [torch.zeros(4, 4), *((normal(4, 4) * 2).round() / 4 for _ in range(3))],
    }
    sets["faint"][4:] = [tensor * 20 for tensor in sets["faint"][4:]]
    base, first, second, *_ = sets["matrix"]
    sets["with_zero"] = [base, first, base.clone(), second]
    sets["identical"] = [base, first, first.clone(), first.clone()]
    grid = (base * 8).round() / 8  # makes the task vectors exactly opposite
    sets["opposite"] = [grid, grid + 0.25, grid - 0.25]
    sets["collinear"] = [base, base * 1.5, base + 1e-3 * (first - base)]
    sets["apart"] = [base, normal(12, 10), normal(12, 10)]
    return sets


def make_cases() -> list[Case]:
    cases: list[Case] = []

    def add(
        method: str, inputs: str, count: int, parameters: Case | None = None, *, base: bool = True, **each: Any
    ) -> None:
        """`each` holds lists of per-expert parameters, or one value for all."""
        experts = [
            {name: value[i] if isinstance(value, list) else value for name, value in each.items()} for i in range(count)
        ]
        cases.append(
            {
                "name": f"{method}_{sum(case['method'] == method for case in cases):02d}",
                "method": method,
                "inputs": inputs,
                "base": base,
                "parameters": parameters or {},
                "experts": experts,
            }
        )

    add("linear", "matrix", 3, base=False, weight=[0.5, 0.3, 0.7])
    add("linear", "matrix", 5, {"normalize": False}, base=False, weight=[0.5, -0.3, 0.7, 0.0, 1.1])
    add("linear", "vector", 1, base=False, weight=2.0)
    add("linear", "conv", 3, base=False, weight=1.0)

    for method in ("task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties"):
        sparse = method != "task_arithmetic"
        add(method, "matrix", 3, weight=[0.5, 0.3, 0.7], density=[0.5, 0.2, 0.9])
        add(method, "matrix", 5, {"normalize": False, "lambda": 0.4}, weight=0.4, density=0.3)
        add(method, "matrix", 4, {"normalize": True, "lambda": 1.3}, weight=[0.4, -0.9, 0.3, 1.0], density=0.6)
        add(method, "matrix", 2, {"normalize": True}, weight=[1.0, -1.0], density=0.6)
        add(method, "matrix", 1, weight=0.7, density=0.4)
        add(method, "matrix", 3, weight=1.0, density=1.0)
        add(method, "matrix", 3, weight=1.0, density=[0.0, 0.5, 0.001])
        add(method, "vector", 4, weight=[1.0, 0.5, 0.25, 2.0], density=0.4)
        add(method, "conv", 3, weight=0.5, density=0.5)
        add(method, "with_zero", 3, weight=[1.0, 2.0, 3.0], density=0.5)
        add(method, "identical", 3, weight=[1.0, 2.0, 3.0], density=0.5)
        add(method, "opposite", 2, weight=1.0, density=1.0)
        add(method, "grid", 3, weight=[1.0, 0.5, 0.25], density=0.5)
        add(method, "grid", 3, {"int8_mask": True, "normalize": True}, weight=[1.0, 0.5, 0.5], density=[0.2, 0.9, 0.5])
        if sparse:
            add(method, "matrix", 3, {"rescale": True}, weight=[0.5, 0.3, 0.7], density=0.35)
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        add(method, "matrix", 3, weight=0.5, density=0.5, gamma=[0.1, 0.3, 0.0])
        add(method, "matrix", 3, weight=0.5, density=0.9, gamma=0.3)
        add(method, "grid", 3, weight=0.5, density=0.5, gamma=0.2)

    for inputs in ("matrix", "vector", "conv", "collinear", "apart"):
        for t in (0.0, 0.3, 0.5, 1.0, 1.4):
            add("slerp", inputs, 1, {"t": t})
    for flatten, row_wise in ((True, False), (False, False), (False, True)):
        options = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
        add("nuslerp", "matrix", 2, options, weight=[0.5, 0.8])
        add("nuslerp", "apart", 2, options, base=False, weight=[1.0, 3.0])
        add("nuslerp", "conv", 2, options, base=False, weight=[1.0, 3.0])
        add("nuslerp", "vector", 2, options, weight=[1.0, -0.4])
    add("nuslerp", "matrix", 2, weight=[1.0, -1.0])
    add("nuslerp", "collinear", 2, base=False, weight=[1.0, 2.0])
    add("nuslerp", "identical", 2, weight=[1.0, 2.0])

    add("multislerp", "matrix", 3, weight=[0.5, 0.3, 0.7])
    add("multislerp", "matrix", 5, {"normalize_weights": False}, weight=[0.5, 0.3, 0.7, 0.2, 0.1])
    add("multislerp", "apart", 2, base=False, weight=[1.0, 3.0])
    add("multislerp", "matrix", 1, weight=0.4)
    add("multislerp", "opposite", 2, weight=1.0)
    add("multislerp", "opposite", 2, weight=[1.0, 3.0])
    add("multislerp", "with_zero", 3, weight=[1.0, 1.0, 2.0])
    add("multislerp", "identical", 3, weight=1.0)
    add("multislerp", "vector", 4, {"eps": 1e-3}, weight=[1.0, 1.0, 2.0, 0.5])

    for filter_wise in (False, True):
        options = {"filter_wise": filter_wise}
        add("model_stock", "matrix", 2, options)
        add("model_stock", "matrix", 5, options)
        add("model_stock", "vector", 4, options)
        add("model_stock", "conv", 3, options)
        add("model_stock", "with_zero", 3, options)
        add("model_stock", "identical", 3, options)
        add("model_stock", "opposite", 2, options)
        add("model_stock", "faint", 3, options)
        add("model_stock", "faint", 5, options)

    for top in (1.0, 0.6, 0.1, 0.0):
        add("sce", "matrix", 4, {"select_topk": top})
        add("sce", "vector", 3, {"select_topk": top})
    add("sce", "conv", 3, {"select_topk": 0.5})
    add("sce", "matrix", 1, {"select_topk": 0.5})
    add("sce", "matrix", 1)
    add("sce", "with_zero", 3, {"select_topk": 0.7})
    add("sce", "identical", 3, {"select_topk": 0.7, "int8_mask": True})
    add("sce", "faint", 5, {"select_topk": 0.5})
    add("sce", "opposite", 2)

    add("passthrough", "matrix", 1, base=False)
    add("passthrough", "vector", 1, base=False, scale=0.3)

    add("karcher", "matrix", 4, base=False)
    add("karcher", "apart", 2, {"max_iter": 20}, base=False)
    add("karcher", "with_zero", 3, {"max_iter": 1}, base=False)
    add("arcee_fusion", "matrix", 1)
    add("arcee_fusion", "vector", 1)
    add("nearswap", "matrix", 1, {"t": 0.1})
    add("nearswap", "conv", 1, {"t": 0.02})
    for epsilon in (1e-5, 0.2):
        add("ram", "matrix", 4, {"epsilon": epsilon})
        add("ramplus_tl", "matrix", 4, {"epsilon": epsilon})
    add("ramplus_tl", "with_zero", 3, {"r": 0.5, "alpha": 2.0})
    return cases


def run(case: Case, inputs: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    base, *experts = (tensor.to(dtype) for tensor in inputs)
    entries = [TensorEntry(id=i, tensor=expert) for i, expert in enumerate(experts[: len(case["experts"])])]
    if case["base"]:
        entries.append(TensorEntry(id="base", tensor=base, is_base=True))
    names = {name for each in case["experts"] for name in each}
    per_expert = {name: {i: each[name] for i, each in enumerate(case["experts"])} for name in names}
    known = {parameter.name for parameter in registry.get(case["method"]).spec.parameters}
    parameters = {name: value for name, value in {**case["parameters"], **per_expert}.items() if name in known}
    (result,) = registry.get(case["method"])([TensorGroup(entries=entries)], parameters=parameters)
    assert torch.isfinite(result).all(), case
    return result


def main() -> None:
    torch.set_num_threads(1)
    sets = make_inputs()
    cases = make_cases()
    tensors = {
        f"inputs/{name}/{'base' if i == 0 else i - 1}": tensor.clone()
        for name, group in sets.items()
        for i, tensor in enumerate(group)
    }
    for case in cases:
        for dtype_name, dtype in DTYPES.items():
            tensors[f"{case['name']}/{dtype_name}"] = run(case, sets[case["inputs"]], dtype).contiguous().clone()
    save_file(tensors, HERE / "mergekit.safetensors", metadata={"mergekit": "0.1.5", "torch": torch.__version__})
    lines = ",\n".join(json.dumps(case, sort_keys=True) for case in cases)
    (HERE / "mergekit.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
