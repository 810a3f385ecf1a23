"""torch, loaded at its first use.

A recipe is validated and a plan is made without touching a tensor, and importing torch costs a second. The files of
`numerics` therefore write `from .lazy_torch import torch`; type checkers see the real module. Code that starts worker
threads imports torch for real first (`import torch`), because loading a module lazily from two threads is not safe on
Python 3.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
else:
    import lazy_loader

    torch = lazy_loader.load("torch")

__all__ = ["torch"]
