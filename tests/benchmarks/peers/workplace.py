"""The folder of a measurement: models, recipes, destinations and stores, and the two tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .results import Figures
from .timing import EIGENMERGE, ROOT, program, run

_DENSITY = {"ties": 0.3, "dare_ties": 0.5}
_MB = 2**20


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where commands are run.

    folder : empty in the beginning
    mergekit : path of mergekit-yaml; None where there is none
    """

    folder: Path
    mergekit: str | None

    def models(self, size: str, num_experts: int) -> Path:
        """Return a folder with a base and at least so many experts, which are written if there is none.

        The first experts are the same however many there are. Another process writes them: the peak memory of a
        command counts that of the process that starts it.
        """
        name = size.replace(" ", "-")
        target = self.folder / f"{name}-{num_experts}"
        for found in self.folder.glob(f"{name}-*"):
            if (found / f"expert{num_experts - 1}").exists():
                target = found
        if not target.exists():
            run(program("llama", str(target), size, str(num_experts)), os.environ)
        return target

    def recipe(self, models: Path, method: str, num_experts: int, **keys: object) -> Path:
        """Write a recipe that both tools read, if `keys` has none that only one of them has."""
        text = self.folder / "recipe.yml"
        text.write_text(recipe_text(models, method, num_experts, **keys))
        return text

    def merge(
        self,
        recipe: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        keep_store: bool = False,
        store: str = "store",
    ) -> Figures:
        """Merge with this package into an empty folder, from an empty store unless `keep_store`."""
        self.remove("out", *([] if keep_store else [store]))
        command = [EIGENMERGE, "merge", str(recipe), str(self.folder / "out")]
        command += ["--store", str(self.folder / store), "--quiet", *options]
        return command_figures(command, environment or all_cores())

    def merge_with_mergekit(self, recipe: Path, environment: Mapping[str, str] | None = None) -> Figures:
        """Merge with mergekit into an empty folder."""
        assert self.mergekit is not None
        self.remove("out")
        command = [self.mergekit, str(recipe), str(self.folder / "out"), "--quiet", "--random-seed", "42"]
        return command_figures(command, environment or all_cores())

    def remove(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)


def recipe_text(models: Path, method: str, num_experts: int, **keys: object) -> str:
    """Return a recipe as JSON, which is YAML too."""
    experts: list[dict[str, object]] = []
    for index in range(num_experts):
        parameters = {"weight": 0.4} | ({"density": _DENSITY[method]} if method in _DENSITY else {})
        experts.append({"model": str(models / f"expert{index}"), "parameters": parameters})
    base = {} if method == "linear" else {"base_model": str(models / "base")}
    return json.dumps({"merge_method": method, "models": experts, "dtype": "bfloat16", **base, **keys})


def all_cores() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}


def one_core() -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")}


def command_figures(command: Sequence[str], environment: Mapping[str, str]) -> Figures:
    """Return cpu and wall in seconds and the peak memory of the largest process in bytes."""
    cpu, wall, peak = run(command, environment)
    return {"cpu": cpu, "wall": wall, "memory": peak * _MB}


def mergekit_version(command: str) -> str:
    """Return the version of mergekit in the environment of its command."""
    ask = "import importlib.metadata as found; print(found.version('mergekit'))"
    done = subprocess.run([str(Path(command).with_name("python")), "-c", ask], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else "of unknown version"
