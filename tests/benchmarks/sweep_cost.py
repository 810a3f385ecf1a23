"""CPU time of a sweep of 20 settings against one merge of the same model, both from an empty store.

    python tests/benchmarks/sweep_cost.py [--hidden 1024 --intermediate 4096 --layers 8 --vocabulary 32000]

The default model is small; the sizes above are those of a Llama of 200M parameters. Experts are the base plus a matrix
of rank 8 and small noise, in bfloat16. Times are CPU seconds of this process with one worker, so that other programs on
the machine change them little; only the ratios within one run are meant to be used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    sizes = Sizes(**vars(parser.parse_args()))
    count = sum(torch.Size(shape).numel() for shape in sizes.shapes().values())
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), sizes)
    print(f"{count / 1e6:.0f}M parameters, {EXPERTS} experts, torch {torch.__version__}")
    for name, value in seconds.items():
        print(f"{name:30} {value:7.1f} CPU s  {value / seconds['one merge']:5.2f} of one merge")


if __name__ == "__main__":
    main()
