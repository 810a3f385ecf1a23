"""`--help` and mistakes are answered at once: nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "prefect", "pyarrow", "s3fs", "safetensors", "psutil", "filelock", "eigenmerge.core.recipe.recipe")


def test_the_command_is_loaded_without_what_only_runs_need() -> None:
    code = f"import sys, eigenmerge.deployments.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
