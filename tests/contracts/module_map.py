"""Writes docs/files.md: every source file with the first sentence of its docstring.

    python tests/contracts/module_map.py        # after adding, renaming or splitting a file

`test_layout.py` fails when the page is out of date.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "files.md"
INTRODUCTION = """# Files

Every source file with its purpose, from the top of the import order to its bottom. [architecture.md](architecture.md)
explains how they work together.

This page is generated: `python tests/contracts/module_map.py` writes it from the docstrings of the files.
"""

# In the import order: a folder may import from those after it. The contracts in pyproject.toml are stricter.
FOLDERS = {
    "deployments": "the programs that start a merge: Python calls, embedded Prefect server, deployments on a server",
    "deployments/cli": "the command line: arguments, text and progress on the terminal",
    "deployments/cli/commands": "one file per subcommand",
    "deployments/cli/setup": "subcommands that prepare a merge: write a recipe, check the machine, describe recipes",
    "deployments/face": "the public package: what `import eigenmerge` provides",
    "flows": "Prefect flows",
    "tasks": "Prefect tasks; their arguments are keys and addresses, never tensors",
    "tasks/runners": "where tasks run: threads, Dask, Ray",
    "core": "the whole merge without Prefect",
    "core/sweep": "search the parameters of a method: each layer decomposed once, candidates filtered",
    "core/sweep/evaluators": "score a candidate: a function of the user's, and those that are shipped",
    "core/steps": "the actions that a command or a flow calls",
    "core/steps/reading": "what a finished merge recorded: ranks, origins of parameters, one tensor, comparisons",
    "core/steps/reporting": "the report on a finished merge: numbers, warnings in words, one HTML page",
    "core/steps/hub": "push a finished checkpoint to the Hugging Face Hub",
    "core/steps/loading": "load a finished checkpoint as its users do",
    "core/steps/verification": "verify checkpoints and stores, and recompute tensors",
    "core/steps/scheduled": "a scheduled merge of registered experts: choose, decide, publish, retain",
    "core/extraction": "make a LoRA adapter of a full fine-tune",
    "core/merging": "merge one tensor: read, merge, cast",
    "core/merging/blocks": "merge a tensor block by block, from stored dtypes to the output's bytes",
    "core/output": "write and verify the merged checkpoint",
    "core/publishing": "scheduled merges, repositories of the Hub",
    "core/cache": "the kinds of object that a store keeps",
    "core/cache/spectra": "decompositions in Arrow files",
    "core/coordination": "claims, devices, workers, stopping",
    "core/storage": "read and write named objects below one root",
    "core/storage/assembly": "join parts to one file of the checkpoint",
    "core/storage/checkpoints": "read stored models: references, folders, the Hub, adapters, float8",
    "core/storage/backends": "local disk, S3, every other fsspec file system",
    "core/planning": "from headers to a plan: pure functions, without I/O and without torch",
    "core/planning/outputs": "decide what happens to each output tensor",
    "core/planning/outputs/vocabulary": "rows by token: different vocabularies, new tokens, padding, token ids",
    "core/planning/inputs": "interpret what each model stores",
    "core/planning/inputs/checks": "check that an expert fits its base",
    "core/planning/inputs/adapters": "interpret the factors of an adapter",
    "core/planning/inputs/names": "match names: wrappers, tied weights, heads",
    "core/planning/inputs/layouts": "views on stored tensors: mixtures in any form, weights stored (in, out)",
    "core/planning/cost": "project bytes, operations, memory and time",
    "core/recipe": "parse and validate what the user writes",
    "core/numerics": "the mathematics, on tensors in memory: spectra, filters, rank rules, methods",
    "core/numerics/methods": "merge methods, one file per published method or close family",
    "core/numerics/interference": "decompositions of the WUDI family",
    "core/numerics/noise": "the rounding of stored weights as noise of known size, and shrinkage under known noise",
    "core/numerics/products": "matrix products by the faster of the libraries in torch, and symmetric ones by halves",
    "core/numerics/svd": "singular value decompositions in the space of the data",
    "core/numerics/elementwise": "building blocks of methods that treat each entry by itself",
    "core/formats": "dtypes, digests, safetensors headers, bounded JSON, names",
}


def first_line(path: Path) -> str:
    """Return the first paragraph of a module's docstring as one line of a Markdown table."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = docstring.split("\n\n")[0].replace("\n", " ").strip()
    assert line, f"{path.relative_to(ROOT)} has no docstring"
    return line.replace("|", "\\|")


def files_page() -> str:
    """Return the content of docs/files.md: one table per folder."""
    lines = [INTRODUCTION]
    for folder, purpose in FOLDERS.items():
        lines += [f"## `{folder}/`: {purpose}\n", "| file | purpose |", "|---|---|"]
        files = sorted(path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py")
        if folder == "deployments/face":
            files = [ROOT / folder / "__init__.py", *files]
        lines += [f"| [`{path.name}`](../{path.relative_to(ROOT)}) | {first_line(path)} |" for path in files] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(files_page())
