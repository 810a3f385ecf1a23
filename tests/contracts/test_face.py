"""`import eigenmerge` provides typed public names, imported at first use, from a wheel and from an editable install."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "deployments" / "face" / "__init__.pyi"
SOURCES = ("core", "tasks", "flows", "deployments")
LARGE = ("torch", "pydantic", "prefect", "pyarrow", "fsspec", "numpy")
LOADED = f"print(json.dumps([m for m in {LARGE} if m in sys.modules]))"
REQUIRED = {
    "__version__",
    "merge",
    "plan",
    "verify",
    "merge_task_vectors",
    "merge_run",
    "Recipe",
    "read_recipe",
    "Store",
    "read_spectrum",
    "EigenmergeError",
    "SpectralMethod",
    "DirectMethod",
}


@pytest.fixture(scope="module", params=["wheel", "editable"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment with the package; it shares the dependencies of this environment."""
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    here = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    (folder / f"venv/lib/{version}/site-packages/dependencies.pth").write_text("\n".join(here))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    target = ["--editable", source] if request.param == "editable" else [source]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", *target], check=True, timeout=120)
    return python


def run(python: Path, code: str) -> Any:
    """Run code outside of the checkout and return the JSON that it prints."""
    done = subprocess.run(
        [python, "-c", f"import json, sys\n{code}"], cwd=python.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def stub_names() -> set[str]:
    tree = ast.parse(STUB.read_text())
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_the_installed_package_is_imported(python: Path) -> None:
    file = run(python, "import eigenmerge; print(json.dumps(eigenmerge.__file__))")
    assert Path(file).is_relative_to(python.parents[2])


def test_every_listed_name_can_be_imported_and_merge_is_the_function(python: Path) -> None:
    """`merge` is the function also after imports of modules of that name."""
    found = run(
        python,
        "import eigenmerge\n"
        "names = dir(eigenmerge)\n"
        "first = eigenmerge.merge\n"
        "missing = [name for name in names if getattr(eigenmerge, name) is None]\n"
        "import eigenmerge.flows.merge, eigenmerge.core.steps.merge_run\n"
        "from eigenmerge import merge\n"
        "kinds = [type(first).__name__, type(merge).__name__, first is merge]\n"
        "print(json.dumps([names, missing, eigenmerge.__doc__, kinds]))",
    )
    assert set(found[0]) == stub_names() | {"__version__"} >= REQUIRED
    assert found[0] == sorted(found[0]) and found[1] == []
    assert found[2].startswith("Eigenmerge: merge many")
    assert found[3] == ["function", "function", True]


def test_the_import_loads_no_large_package(python: Path) -> None:
    assert run(python, f"import eigenmerge; names = dir(eigenmerge)\n{LOADED}") == []


def test_a_name_loads_only_what_it_needs(python: Path) -> None:
    loaded = run(python, f"from eigenmerge import Recipe, Store, plan, verify\n{LOADED}")
    assert not {"torch", "prefect", "pyarrow"} & set(loaded)


def test_a_misspelled_name_is_an_attribute_error(python: Path) -> None:
    raised = run(
        python,
        "import eigenmerge\n"
        "try:\n    eigenmerge.merg\n"
        "except AttributeError as error:\n    print(json.dumps(str(error)))",
    )
    assert "merg" in raised


def test_python_m_eigenmerge_is_the_command(python: Path) -> None:
    for command in ([python, "-m", "eigenmerge"], [python.parent / "eigenmerge"]):
        done = subprocess.run([*command, "--version"], cwd=python.parent, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("eigenmerge ")


def test_type_checkers_infer_the_types(python: Path, tmp_path: Path) -> None:
    """Run pyright on a file of a user, against the installed wheel."""
    if "editable" in str(python):
        pytest.skip("type checkers do not find packages that the import hook of an editable install provides")
    (tmp_path / "mine.py").write_text(
        "import eigenmerge\n"
        "reveal_type(eigenmerge.plan)\n"
        "reveal_type(eigenmerge.merge_task_vectors)\n"
        "reveal_type(eigenmerge.Store('out').root_uri)\n"
        "reveal_type(eigenmerge.__version__)\n"
        "eigenmerge.verify('out', sampel=3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", python, "--outputjson", "mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    messages = [found["message"] for found in json.loads(done.stdout)["generalDiagnostics"]]
    revealed = [message for message in messages if message.startswith("Type of")]
    assert len(revealed) == 4 and not any("Unknown" in message for message in revealed), messages
    assert "-> Plan" in revealed[0] and "-> Tensor" in revealed[1] and '"str"' in revealed[2] and '"str"' in revealed[3]
    assert [message for message in messages if "sampel" in message], messages
