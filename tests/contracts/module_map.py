"""Writes the module map of docs/architecture.md from the first line of every module's docstring.

    python tests/contracts/module_map.py        # after adding, renaming or splitting a file

`test_layout.py` fails when the page is out of date, so the map is always true.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- module map: written by tests/contracts/module_map.py -->\n", "<!-- end of module map -->\n"

FOLDERS = {
    "deployments": "where it runs: command line, embedded server, prefect.yaml, work-pool templates, Dockerfile",
    "deployments/cli": "one file per subcommand",
    "deployments/face": "what `import eigenmerge` gives",
    "flows": "order only: a flow file reads like a table of contents",
    "tasks": "thin Prefect tasks: retries, names; pass keys and URIs, never tensors",
    "tasks/runners": "threads, Dask, Ray",
    "core": "the pipeline without Prefect",
    "core/steps": "what a command or a flow calls",
    "core/merging": "one tensor: read, merge, cast",
    "core/output": "the merged checkpoint",
    "core/publishing": "scheduled merges",
    "core/cache": "what a store keeps",
    "core/cache/spectra": "decompositions in Arrow files",
    "core/coordination": "claims, devices, stopping",
    "core/storage": "objects by name below one root",
    "core/storage/backends": "local disk, S3, every other fsspec file system",
    "core/storage/checkpoints": "models as they are stored: references, folders, adapters, float8",
    "core/storage/assembly": "one output file out of parts",
    "core/planning": "from headers to a plan: pure functions, no torch",
    "core/planning/inputs": "what each model gives",
    "core/planning/outputs": "what happens to each output tensor",
    "core/planning/cost": "bytes, operations, memory, time",
    "core/recipe": "what a user writes",
    "core/numerics": "torch only: spectrum, filters, rank rules, methods",
    "core/numerics/interference": "the WUDI family's operators and their decompositions",
    "core/numerics/svd": "singular value decompositions in the space of the data",
    "core/numerics/elementwise": "methods that treat each entry by itself",
    "core/numerics/methods": "one file per published method or close family",
    "core/formats": "dtypes, digests, safetensors headers, bounded JSON, names",
}


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = docstring.split("\n\n")[0].replace("\n", " ").strip()
    assert line, f"{path.relative_to(ROOT)} has no docstring"
    return line.replace("|", "\\|")


def module_map() -> str:
    """The map as Markdown: a table per folder, from the top of the import order to its bottom."""
    lines: list[str] = []
    for folder, purpose in FOLDERS.items():
        lines += [f"\n### `{folder}/`: {purpose}\n", "| file | what it holds |", "|---|---|"]
        files = sorted(path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py")
        lines += [f"| `{path.relative_to(ROOT)}` | {first_line(path)} |" for path in files]
    return "\n".join(lines) + "\n"


def page_with_map(page: str) -> str:
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + module_map() + END + after


if __name__ == "__main__":
    PAGE.write_text(page_with_map(PAGE.read_text()))
