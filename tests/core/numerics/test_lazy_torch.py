"""Importing numerics and the recipe's methods does not import torch; using a tensor does."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import eigenmerge.core.numerics.registry as registry
from eigenmerge.core.numerics.rank_rules import find_rule
registry.get_method("swudi_a").Parameters(rank_rule="entropy")
find_rule("cumvar_0.9")
assert "torch.nn" not in sys.modules, "a method's parameters need no torch"
from eigenmerge.core.numerics.lazy_torch import torch
assert torch.ones(2).sum().item() == 2.0
import torch as real
assert torch.Tensor is real.Tensor
"""


def test_torch_is_imported_at_its_first_use() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)
