"""The torch module, imported at its first use.

Importing torch takes a second, and recipes are validated and plans made without tensors. The files of `numerics`
therefore use `from .lazy_torch import torch`; type checkers see the real module. Code that starts worker threads must
`import torch` first: on Python 3.11 two threads must not load a lazy module at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
else:
    import lazy_loader

    torch = lazy_loader.load("torch")

__all__ = ["torch"]
