"""Do scores without data predict the share of the experts' gain that a merge keeps?

    python tests/benchmarks/real_experts/data_free.py [--work .experts]

For every set of experts with the measurements of the part `sweep`, the same settings of SWUDI are scored without data.
Printed are, for each score, the rank correlation with the measured share over the settings, and the share of the
setting that the score chooses.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

import eigenmerge

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from families import fetch_packages
from measure import Cell, cells
from measurements import FAMILY_NAMES, load
from rows import GRID, SWEEP

SCORES = {"gcv": -1, "interference": -1, "norm": -1, "l_curve": 1}  # sign: whether a higher value is better


def ranks(values: list[float]) -> torch.Tensor:
    """Return the rank of each value; equal values have their mean rank."""
    data = torch.tensor(values, dtype=torch.float64)
    return (data[:, None] > data).double().sum(1) + ((data[:, None] == data).double().sum(1) - 1) / 2


def correlation(first: list[float], second: list[float]) -> float:
    """Return Spearman's rank correlation; 0 where one of the lists is constant."""
    found = torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1]
    return 0.0 if found.isnan() else float(found)


def scores_of(cell: Cell) -> dict[tuple[float, float], dict[str, float | None]]:
    """Return the scores of each setting (exp_time, rank_ratio), computed from the decompositions alone."""
    recipe = {**cell.recipe(SWEEP[0]), "parameters": {}}
    found = eigenmerge.sweep(recipe, GRID, store=cell.scratch / "store", use_prefect=False)
    return {(row.settings["exp_time"], row.settings["rank_ratio"]): row.metrics for row in found.outcome.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".experts"), help="folder for all files of the benchmark")
    parser.add_argument("--sets", nargs="+", type=int, default=[0, 1, 2], help="numbers of the sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work.resolve()
    names = [row.name for row in SWEEP]
    settings = [(row.keys["parameters"]["exp_time"], row.keys["parameters"]["rank_ratio"]) for row in SWEEP]
    print("| set | measured: lowest, highest share | score | rank correlation | choice | its share |")
    print("|---|---|---|--:|---|--:|")
    for cell in cells(work, fetch_packages(work), list(FAMILY_NAMES), options.sets, ["float32"]):
        answers = load(work, cell.experts.family.name, numbers=[cell.experts.number]).with_row(*names)
        if not answers:
            continue
        shares = [100 * answers[0].share(name) for name in names]
        scores = scores_of(cell)
        for score, sign in SCORES.items():
            values = [scores[setting][score] for setting in settings]
            better = [sign * value for value in values if value is not None]
            assert len(better) == len(shares), f"{score} is not defined for all settings"
            chosen = better.index(max(better))
            where = re.sub("-float32$", "", cell.name)
            span = f"{min(shares):.1f}, {max(shares):.1f}"
            related = f"{correlation(better, shares):+.2f}"
            print(f"| {where} | {span} | {score} | {related} | {names[chosen]} | {shares[chosen]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
