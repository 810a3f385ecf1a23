"""The torch module, imported at its first use.

Importing torch takes a second, and recipes are validated and plans made without tensors. The files of `numerics`
therefore use `from .lazy_torch import torch`; type checkers see the real module.

`importlib.util.LazyLoader` is not used (nor `lazy_loader.load`, which uses it): it puts an unloaded module into
`sys.modules`, where other packages find it, two threads must not load it at the same time on Python 3.11, and on
Python 3.12.3 a module that imports itself, as torch does, fails to load (cpython#117178).
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
