"""docs/own-method.md: the package of its code blocks is installed, listed, and used for a plan and a merge."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "own-method.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PACKAGE, CALL, TESTS = (text for language, text in BLOCKS if language == "python")
((_, PYPROJECT),) = [block for block in BLOCKS if block[0] == "toml"]
((_, RECIPE),) = [block for block in BLOCKS if block[0] == "yaml"]
((_, CONSOLE),) = [block for block in BLOCKS if block[0] == "console"]
Q_PROJ, K_PROJ = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the package of the page is installed."""
    folder = tmp_path_factory.mktemp("own-method")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "acme_merging.py").write_text(PACKAGE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", target, source], check=True, timeout=120)
    return target


@pytest.fixture
def run(prefect_server: str, tmp_path: Path) -> Callable[..., str]:
    """Run Python in the folder of the models, with the folder of the package on its path; return its output."""

    def start(arguments: Sequence[str], site: Path) -> str:
        environment = {
            **os.environ,
            "PREFECT_API_URL": prefect_server,
            "EIGENMERGE_STORE": str(tmp_path / "store"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(site),
        }
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return start


# Several commands in one interpreter, because starting one takes seconds.
COMMANDS = """
import contextlib, io, json, sys
from eigenmerge.deployments.cli.app import main
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["eigenmerge", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def run_commands(run: Callable[..., str], site: Path, *commands: str) -> list[tuple[int, str, str]]:
    """Run `eigenmerge ...` commands and return the exit code, output and errors of each."""
    printed = run(["-c", COMMANDS, json.dumps([command.split() for command in commands])], site)
    return [(code, out, err) for code, out, err in json.loads(printed.splitlines()[-1])]


def save_models(make_models: Callable[..., Any], folder: Path) -> Any:
    """Save models of one layer under the names that the recipe uses, and the recipe."""
    models = make_models(num_experts=3, layers=1)
    for path, name in zip(models.experts, ("expert-a", "expert-b", "expert-c"), strict=True):
        path.rename(folder / name)
    (folder / "recipe.yml").write_text(RECIPE)
    return models


KEYS = """
import eigenmerge
from eigenmerge.core.planning.plan import spectrum_keys
for shard in eigenmerge.plan("recipe.yml").shards:
    if any(tensor.action == "merge" for tensor in shard.tensors):
        print(shard.part_key, *(key for tensor in shard.tensors for key in spectrum_keys(tensor)))
"""


def test_methods_of_the_package_are_listed_planned_and_run(
    make_models: Callable[..., Any], run: Any, site: Path, tmp_path: Path, load_checkpoint: Any
) -> None:
    models = save_models(make_models, tmp_path)
    shown, _, printed = CONSOLE.partition("$ eigenmerge ")[2].partition("\n")
    results = run_commands(run, site, shown, "methods --json", "plan recipe.yml", "merge recipe.yml merged")
    assert [code for code, _, _ in results] == [0, 0, 0, 0], results
    assert results[0] == (0, printed, "")
    cards = {card["name"]: card for card in json.loads(results[1][1])}
    assert {cards[name]["package"] for name in ("soft_mean", "median")} == {"acme-merging 1.0"}
    assert cards["swudi"]["package"] is None

    merged = load_checkpoint(tmp_path / "merged")
    deltas = {
        name: torch.stack([expert[name] - models.base_tensors[name] for expert in models.expert_tensors])
        for name in (Q_PROJ, K_PROJ)
    }
    left, values, right = torch.linalg.svd(deltas[Q_PROJ].mean(0).double(), full_matrices=False)
    expected = left @ torch.diag((values - 0.2 * values[0]).clamp(min=0)) @ right
    change = (merged[Q_PROJ] - models.base_tensors[Q_PROJ]).double()
    assert (change - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(merged[K_PROJ], models.base_tensors[K_PROJ] + deltas[K_PROJ].median(0).values)
    manifest = json.loads((tmp_path / "merged" / "eigenmerge_manifest.json").read_text())
    packages = {row["name"]: row.get("method_package") for row in manifest["tensors"]}
    assert packages[Q_PROJ] == packages[K_PROJ] == "acme-merging 1.0"


def test_keys_depend_on_the_version_of_the_package(run: Any, site: Path, tmp_path: Path, make_models: Any) -> None:
    save_models(make_models, tmp_path)
    upgraded = tmp_path / "upgraded"
    shutil.copytree(site, upgraded)
    (facts,) = upgraded.glob("*.dist-info")
    metadata = (facts / "METADATA").read_text()
    (facts / "METADATA").write_text(metadata.replace("Version: 1.0", "Version: 1.1"))
    facts.rename(facts.with_name("acme_merging-1.1.dist-info"))
    old, new = set(run(["-c", KEYS], site).split()), set(run(["-c", KEYS], upgraded).split())
    assert {key.partition("/")[0] for key in old} == {"parts", "spectra"}
    assert not old & new


def test_the_tensor_level_call_and_the_tests_of_the_page(run: Any, site: Path, tmp_path: Path) -> None:
    call = CALL + "\nassert merged.shape == median.shape == (6, 8)\nassert not torch.equal(merged, median)\n"
    (tmp_path / "test_acme_merging.py").write_text(call + TESTS)
    assert "2 passed" in run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme_merging.py"], site)


def test_a_broken_package_does_not_affect_other_recipes(run: Any, site: Path, tmp_path: Path, make_models: Any) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(site, broken)
    (broken / "acme_merging.py").write_text("import gone\n")
    save_models(make_models, tmp_path)
    recipe = yaml.safe_load(RECIPE)
    recipe["merge_method"] = recipe["rules"][0]["method"] = "iso_c"
    del recipe["parameters"]
    (tmp_path / "other.yml").write_text(yaml.safe_dump(recipe))
    listed, asked, other = run_commands(run, broken, "methods", "plan recipe.yml", "plan other.yml")
    assert listed[1].endswith(
        "\nacme: unavailable: entry point acme = acme_merging of package acme-merging 1.0 cannot be imported:"
        " ModuleNotFoundError: No module named 'gone'\n"
    )
    assert (listed[0], other[0]) == (0, 0), (listed, other)
    code, _, error = asked
    assert code == 2
    assert error.startswith("eigenmerge: error: recipe.yml: merge_method: unknown merge method 'soft_mean'")
    assert error.endswith("(methods of acme-merging 1.0 are unavailable: `eigenmerge methods` shows why)\n")
    assert error.count("\n") == 1
