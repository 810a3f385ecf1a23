"""Two merges of the same small experts with other parameters, in one store, made once for all tests of commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.read_recipe import read_recipe

from ....small_models import base_weights, expert_weights, llama_config, save_model


@dataclass(frozen=True)
class Merges:
    """Folders: of the models, of both results and of their store."""

    root: Path
    recipes: tuple[dict[str, Any], dict[str, Any]]

    @property
    def first(self) -> str:
        return str(self.root / "first")

    @property
    def second(self) -> str:
        return str(self.root / "second")

    @property
    def store(self) -> str:
        return str(self.root / "store")

    @property
    def base(self) -> str:
        return str(self.root / "base")


@pytest.fixture(scope="session")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Merges:
    root = tmp_path_factory.mktemp("two-merges")
    base = base_weights(layers=2)
    save_model(root / "base", base, llama_config(layers=2))
    for index, name in enumerate(("math", "code", "law")):
        save_model(root / name, expert_weights(base, index), llama_config(layers=2))

    def recipe(ratio: float) -> dict[str, Any]:
        return {
            "merge_method": "swudi",
            "base_model": str(root / "base"),
            "models": [
                {"model": str(root / "math"), "parameters": {"weight": 0.5}},
                {"model": str(root / "code")},
                {"model": str(root / "law")},
            ],
            "parameters": {"rank_ratio": ratio},
            "rules": [{"match": "*.q_proj.weight", "parameters": {"rank_ratio": 0.25}}],
        }

    found = Merges(root, (recipe(0.85), recipe(0.5)))
    for data, destination in zip(found.recipes, (found.first, found.second), strict=True):
        merge_run(read_recipe(data), destination, store=found.store)
    return found


class Terminal:
    """Make standard output a terminal of a width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def open(self, columns: int = 80) -> None:
        import shutil
        import sys

        self._monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        self._monkeypatch.setenv("COLUMNS", str(columns))
        assert shutil.get_terminal_size().columns == columns


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch)
