"""Do scores without data predict accuracy? Measured on the experts that `make demo` has trained.

    python tests/benchmarks/data_free_scores.py [--work .demo] [--items 500]

Sweeps SWUDI over a wide grid twice, by accuracy on held-out items and without data, and prints for each score the rank
correlation with the mean accuracy over the settings, and the accuracy of the setting that the score chooses.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from functools import cache
from pathlib import Path

import torch

import eigenmerge

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from data import Task, fetch, load_tasks
from encoder import Encoder
from experts import Workshop

GRID = {"exp_time": [30, 300, 3000], "rank_ratio": [0.25, 0.5, 0.75, 1.0]}
SCORES = {"gcv": -1, "interference": -1, "norm": -1, "l_curve": 1}  # sign: whether a higher value is better


def ranks(values: list[float]) -> torch.Tensor:
    """Return the rank of each value; equal values have their mean rank."""
    data = torch.tensor(values, dtype=torch.float64)
    return (data[:, None] > data).double().sum(1) + ((data[:, None] == data).double().sum(1) - 1) / 2


def correlation(first: list[float], second: list[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="work folder of the demo")
    parser.add_argument("--items", type=int, default=500, help="test items of each task, at most")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    work, items = arguments.work.resolve(), arguments.items
    torch.set_num_threads(arguments.threads)
    workshop = Workshop(work)

    @cache
    def tasks() -> list[Task]:
        return [task for task in load_tasks(fetch(work / "packages")) if workshop.expert(task).is_dir()]

    def accuracies(candidate: eigenmerge.Candidate) -> dict[str, float]:
        encoder = Encoder.load(candidate.directory())
        found: dict[str, float] = {}
        for task in tasks():
            chosen = task.test[:items]
            label = torch.tensor([label for _, label in chosen])
            answers = (encoder.embed_all([text for text, _ in chosen]) @ workshop.head(task).T).argmax(-1)
            found[task.name] = (answers == label).float().mean().item()
        return {"mean": sum(found.values()) / len(found), **found}

    recipe = {
        "merge_method": "swudi",
        "base_model": str(workshop.base),
        "models": [{"model": str(workshop.expert(task))} for task in tasks()],
        "dtype": "float32",
    }
    store = work / "store"
    key = f"{[task.name for task in tasks()]} {items} test items"
    with_data = eigenmerge.sweep(recipe, GRID, accuracies, key=key, store=store, not_below_base=True, use_prefect=False)
    without = eigenmerge.sweep(recipe, GRID, store=store, use_prefect=False)
    scores = {tuple(row.settings.values()): row.metrics for row in without.outcome.rows}
    rows = [(row.settings, row.metrics, scores[tuple(row.settings.values())]) for row in with_data.outcome.rows]
    means = [metrics["mean"] for _, metrics, _ in rows]
    base = with_data.outcome.base
    print(f"{len(tasks())} experts ({', '.join(task.name for task in tasks())}), {items} test items each at most,")
    print(f"{len(rows)} settings of SWUDI, torch {torch.__version__}, {date.today()}")
    for settings, metrics, free in rows:
        text = "  ".join(f"{name} {value:.4g}" for name, value in free.items() if value is not None)
        print(f"  {dict(settings)}  mean accuracy {metrics['mean']:.4f}  {text}")
    assert base is not None
    print(f"mean accuracy: base {base.metrics['mean']:.4f}, settings {min(means):.4f} to {max(means):.4f}")
    for name, sign in SCORES.items():
        values = [free[name] for _, _, free in rows]
        if None in values:
            print(f"  {name:13} is not defined for all settings")
            continue
        better = [sign * value for value in values]
        chosen = rows[better.index(max(better))]
        print(
            f"  {name:13} rank correlation {correlation(better, means):+.2f}, chooses {dict(chosen[0])} with"
            f" {chosen[1]['mean']:.4f}"
        )


if __name__ == "__main__":
    main()
