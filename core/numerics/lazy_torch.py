"""The torch module, imported at its first use.

Importing torch takes a second, and recipes are validated and plans made without tensors. The files of `numerics`
therefore use `from .lazy_torch import torch`; type checkers see the real module.

`importlib.util.LazyLoader`, which `lazy_loader.load` uses, has three faults. Other packages find an unloaded module in
`sys.modules`. On Python 3.11, two threads must not load the module at the same time. On Python 3.12.3, a module that
imports itself, as torch does, cannot be loaded (cpython#117178).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        """Takes each attribute from torch."""

        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

        def __dir__(self) -> list[str]:
            import torch

            return dir(torch)

    torch = _Torch()

__all__ = ["torch"]
