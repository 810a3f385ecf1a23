"""Every merge method by its name: the files of `methods/` are imported and their methods collected.

Adding a method is one file there that defines a concrete subclass of SpectralMethod or DirectMethod with a `name`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from difflib import get_close_matches
from functools import cache
from typing import Any

from ..errors import RecipeError
from . import methods as methods_package
from .method import DirectMethod, Method, SpectralMethod


@cache
def all_methods() -> dict[str, SpectralMethod[Any, Any] | DirectMethod[Any, Any]]:
    """Name (not alias) to method, sorted by name."""
    found: dict[str, SpectralMethod[Any, Any] | DirectMethod[Any, Any]] = {}
    for module_info in pkgutil.iter_modules(methods_package.__path__, methods_package.__name__ + "."):
        module = importlib.import_module(module_info.name)
        for member in vars(module).values():
            # `isinstance(member, type)` would ask the lazy torch module for its __class__, and so import torch.
            is_class = issubclass(type(member), type)
            is_method = is_class and issubclass(member, (SpectralMethod, DirectMethod))
            if is_method and member.__module__ == module.__name__ and not inspect.isabstract(member):
                method = member()
                assert method.name not in found, f"two methods are named {method.name}"
                found[method.name] = method
    return dict(sorted(found.items()))


@cache
def _by_any_name() -> dict[str, Method[Any, Any]]:
    names: dict[str, Method[Any, Any]] = {}
    for method in all_methods().values():
        for name in (method.name, *method.aliases):
            assert name not in names, f"two methods answer to {name}"
            names[name] = method
    return names


def get_method(name: str) -> SpectralMethod[Any, Any] | DirectMethod[Any, Any]:
    """The method of that name or alias.

    Raises
    ------
    RecipeError : unknown name; suggests the nearest
    """
    method = _by_any_name().get(name)
    if method is None:
        near = get_close_matches(name, _by_any_name(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "; `eigenmerge methods` lists all"
        raise RecipeError(f"unknown merge method {name!r}{hint}")
    assert isinstance(method, (SpectralMethod, DirectMethod))
    return method
