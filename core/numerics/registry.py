"""Merge methods by name: the built-in ones of `methods/` and those of installed packages (see plugins.py).

To add a built-in method, add one file to `methods/` with a concrete subclass of SpectralMethod or DirectMethod.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from difflib import get_close_matches
from functools import cache

from ..errors import RecipeError
from . import methods as methods_package
from .method import AnyMethod
from .plugins import Plugins, UnavailableMethod, is_method_class, load_plugins


@cache
def built_in_methods() -> dict[str, AnyMethod]:
    """Return the methods of `methods/`: name (not alias) to method, sorted by name."""
    found: dict[str, AnyMethod] = {}
    for module_info in pkgutil.iter_modules(methods_package.__path__, methods_package.__name__ + "."):
        module = importlib.import_module(module_info.name)
        for member in vars(module).values():
            if not is_method_class(member) or member.__module__ != module.__name__ or inspect.isabstract(member):
                continue
            method = member()
            assert method.name not in found, f"two methods are named {method.name}"
            found[method.name] = method
    return dict(sorted(found.items()))


def all_methods() -> dict[str, AnyMethod]:
    """Return built-in methods and those of installed packages: name (not alias) to method, sorted by name.

    Imports every plugin.
    """
    return dict(sorted({**built_in_methods(), **_plugins().methods}.items()))


def unavailable_methods() -> tuple[UnavailableMethod, ...]:
    """Return the methods of installed packages that cannot be used, with the reasons."""
    return _plugins().unavailable


@cache
def _built_in_by_any_name() -> dict[str, AnyMethod]:
    names: dict[str, AnyMethod] = {}
    for method in built_in_methods().values():
        for name in (method.name, *method.aliases):
            assert name not in names, f"two methods have the name {name}"
            names[name] = method
    return names


@cache
def _plugins() -> Plugins:
    return load_plugins(_built_in_by_any_name())


@cache
def _plugins_by_any_name() -> dict[str, AnyMethod]:
    return {name: method for method in _plugins().methods.values() for name in (method.name, *method.aliases)}


def get_method(name: str) -> AnyMethod:
    """Return the method with this name or alias. Plugins are imported only where no built-in method has the name.

    Raises
    ------
    RecipeError : unknown name (suggests the nearest), or a plugin's method that is unavailable (gives the reason)
    """
    method = _built_in_by_any_name().get(name) or _plugins_by_any_name().get(name)
    if method is not None:
        return method
    unavailable = unavailable_methods()
    for entry in unavailable:
        if name in entry.names:
            raise RecipeError(f"merge method {name!r} is unavailable: {entry.reason}")
    near = get_close_matches(name, [*_built_in_by_any_name(), *_plugins_by_any_name()], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "; `eigenmerge methods` lists all"
    if unavailable:
        packages = ", ".join(sorted({entry.package for entry in unavailable}))
        hint += f" (methods of {packages} are unavailable: `eigenmerge methods` shows why)"
    raise RecipeError(f"unknown merge method {name!r}{hint}")


def get_planned_method(name: str, package: str | None) -> AnyMethod:
    """Return the method that a plan names, on the machine that runs the plan.

    Parameters
    ----------
    name : `TensorPlan.method`
    package : `TensorPlan.method_package`, the package and version that the method had where the plan was made

    Raises
    ------
    RecipeError : the package is missing here or has another version, with other results under the same keys
    """
    try:
        method = get_method(name)
    except RecipeError as error:
        if package is None:
            raise
        raise RecipeError(
            f"merge method {name!r} is not available on this worker: install package {package}, as in the plan"
            f" ({error})"
        ) from None
    if method.package != package:
        planned = "built in" if package is None else f"of package {package}"
        here = "built in" if method.package is None else f"of package {method.package}"
        raise RecipeError(
            f"merge method {name!r} is {here} on this worker and {planned} in the plan; install the same version on"
            " every machine"
        )
    return method
