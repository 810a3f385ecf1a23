"""No file of numerics imports torch before a tensor is used."""

from __future__ import annotations

import subprocess
import sys

import torch

from eigenmerge.core.numerics.lazy_torch import torch as lazily_imported

PROGRAM = """
import importlib, pkgutil, sys
import eigenmerge.core.numerics as numerics
for module in pkgutil.walk_packages(numerics.__path__, "eigenmerge.core.numerics."):
    importlib.import_module(module.name)
    assert "torch" not in sys.modules, f"importing {module.name} imports torch"
from eigenmerge.core.numerics.registry import get_method
get_method("swudi_a").Parameters(rank_rule="cumvar_0.9")
assert "torch" not in sys.modules, "checking parameters imports torch"
"""


def test_importing_numerics_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)


def test_it_is_the_real_module() -> None:
    assert lazily_imported.Tensor is torch.Tensor
    assert "float32" in dir(lazily_imported)


def test_threads_may_use_it_first_at_the_same_time() -> None:
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from eigenmerge.core.numerics.lazy_torch import torch\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    assert set(pool.map(lambda _: torch.float32, range(64))) == {torch.float32}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
