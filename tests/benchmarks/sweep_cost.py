"""Time of a sweep of 20 settings against one merge of the same model, both from an empty store.

    python tests/benchmarks/sweep_cost.py [--hidden 1024 --intermediate 4096 --layers 8 --vocabulary 32000]
    python tests/benchmarks/sweep_cost.py --commands [...]

The default model is small; the sizes above are those of a Llama of 200M parameters. Experts are the base plus a matrix
of rank 8 and small noise, in bfloat16. Without --commands, times are CPU seconds of this process with one worker, so
that other programs on the machine change them little. With it, they are those of the commands `merge` and `sweep` with
Prefect, imports included, with their defaults. Only the ratios within one run are meant to be used.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.sweep.candidate import Candidate
from eigenmerge.core.sweep.evaluators.evaluator import Evaluator, from_function
from eigenmerge.core.sweep.prepare_sweep import prepare_sweep
from eigenmerge.core.sweep.run_sweep import run_sweep

GRID = {"exp_time": "100,300,1000,3000", "rank_ratio": "0.55:0.95:0.1"}
RANK, EXPERTS = 8, 3


@dataclass(frozen=True)
class Sizes:
    hidden: int = 512
    intermediate: int = 1376
    layers: int = 2
    vocabulary: int = 2000

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            for part in "qkvo":
                found[f"{name}.self_attn.{part}_proj.weight"] = (self.hidden, self.hidden)
            for part in ("gate", "up"):
                found[f"{name}.mlp.{part}_proj.weight"] = (self.intermediate, self.hidden)
            found[f"{name}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            found[f"{name}.input_layernorm.weight"] = (self.hidden,)
        return found | {"lm_head.weight": (self.vocabulary, self.hidden)}


def make_models(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Write a base and three experts, and return the recipe."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: draw(*shape) * 0.02 for name, shape in sizes.shapes().items()}
    for number in range(-1, EXPERTS):
        model = dict(base)
        for name, weight in base.items() if number >= 0 else ():
            change = draw(*weight.shape) * 2e-4
            if weight.ndim == 2:
                change += draw(weight.shape[0], RANK) @ draw(RANK, weight.shape[1]) * 1e-3
            model[name] = weight + change
        place = folder / ("base" if number < 0 else f"expert{number}")
        place.mkdir()
        stored = {name: weight.to(torch.bfloat16) for name, weight in model.items()}
        save_file(stored, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    models = [{"model": str(folder / f"expert{number}")} for number in range(EXPERTS)]
    return {"merge_method": "swudi", "base_model": str(folder / "base"), "models": models}


def measure(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Return CPU seconds by name."""
    torch.set_num_threads(1)
    recipe = read_recipe(make_models(folder, sizes))
    warm = read_recipe({**recipe.canonical(), "parameters": {"exp_time": 10}, "spectra": "none"})

    def sweep(name: str, evaluator: Evaluator | None) -> None:
        prepared = prepare_sweep(recipe, GRID, evaluator, store=str(folder / name), workers=1)
        assert len(run_sweep(prepared, scratch=str(folder)).rows) == 20

    def tensors(candidate: Candidate) -> float:
        return float(sum(len(tensor) for tensor in candidate.values()))

    def directory(candidate: Candidate) -> float:
        return float((candidate.directory() / "model.safetensors").stat().st_size)

    steps: dict[str, Callable[[], object]] = {
        "warm up": lambda: merge_run(warm, str(folder / "warm"), store=str(folder / "store 0"), workers=1),
        "one merge": lambda: merge_run(recipe, str(folder / "out"), store=str(folder / "store 1"), workers=1),
        "20 settings, without data": lambda: sweep("store 2", None),
        "20 settings, every tensor": lambda: sweep("store 3", from_function(tensors, key="tensors")),
        "20 settings, a directory each": lambda: sweep("store 4", from_function(directory, key="directory")),
    }
    seconds: dict[str, float] = {}
    for name, step in steps.items():
        started = time.process_time()
        step()
        seconds[name] = time.process_time() - started
    return seconds


_EVALUATORS = """
def tensors(candidate):
    return float(sum(len(tensor) for tensor in candidate.values()))

def directory(candidate):
    return float((candidate.directory() / "model.safetensors").stat().st_size)
"""


def measure_commands(folder: Path, sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Return CPU seconds and seconds of commands by name."""
    (folder / "recipe.yml").write_text(yaml.safe_dump(make_models(folder, sizes)))
    (folder / "scores.py").write_text(_EVALUATORS)
    sweep = ["sweep", "recipe.yml", *(f"--grid={name}={values}" for name, values in GRID.items())]
    commands = {
        "one merge": ["merge", "recipe.yml", "out"],
        "20 settings, without data": sweep,
        "20 settings, every tensor": [*sweep, "--evaluate", "scores:tensors"],
        "20 settings, a directory each": [*sweep, "--evaluate", "scores:directory"],
        "one merge again": ["merge", "recipe.yml", "out again"],
    }
    seconds: dict[str, tuple[float, float]] = {}
    for number, (name, command) in enumerate(commands.items()):
        cpu, started = _cpu_of_children(), time.monotonic()
        whole = [sys.executable, "-m", "eigenmerge", *command, "--store", f"store {number}", "--quiet"]
        subprocess.run(whole, cwd=folder, check=True)
        seconds[name] = _cpu_of_children() - cpu, time.monotonic() - started
    return seconds


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--commands", action="store_true", help="time the commands")
    arguments = vars(parser.parse_args())
    commands = arguments.pop("commands")
    sizes = Sizes(**arguments)
    count = sum(torch.Size(shape).numel() for shape in sizes.shapes().values())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        timed = measure_commands(place, sizes) if commands else {k: (v, 0) for k, v in measure(place, sizes).items()}
    print(f"{count / 1e6:.0f}M parameters, {EXPERTS} experts, torch {torch.__version__}")
    cpu_of_one, wall_of_one = timed["one merge"]
    for name, (cpu, wall) in timed.items():
        line = f"{name:30} {cpu:7.1f} CPU s  {cpu / cpu_of_one:5.2f} of one merge"
        print(line + (f"; {wall:7.1f} s  {wall / wall_of_one:5.2f} of one merge" if wall else ""))


if __name__ == "__main__":
    main()
