"""Merge methods of installed packages, found by the entry point group `eigenmerge.methods`.

The value of an entry point is a module, whose concrete SpectralMethod and DirectMethod subclasses are collected, or one
such class. What is wrong with a plugin makes its methods unavailable, with a reason, and nothing else.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, TypeGuard, cast

from pydantic import BaseModel, ValidationError

from ..errors import one_line
from .method import AnyMethod, DirectMethod, ExpertParameters, MethodParameters, SpectralMethod, SpectralParameters

GROUP = "eigenmerge.methods"

MethodClass = type[SpectralMethod[Any, Any]] | type[DirectMethod[Any, Any]]


@dataclass(frozen=True, slots=True)
class UnavailableMethod:
    """A method that cannot be used.

    names : its name and aliases; the entry point's name where the import failed
    package : "name version"
    reason : one line
    """

    names: tuple[str, ...]
    package: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plugins:
    """The methods of all installed packages.

    methods : name (not alias) to method
    """

    methods: Mapping[str, AnyMethod]
    unavailable: tuple[UnavailableMethod, ...]


class _PluginError(Exception):
    """A plugin does not follow the rules; the message completes "... is unavailable: "."""


def load_plugins(built_in: Collection[str]) -> Plugins:
    """Import every plugin and check its methods.

    Parameters
    ----------
    built_in : names and aliases of the built-in methods, which a plugin cannot take
    """
    unavailable: list[UnavailableMethod] = []
    loaded: list[AnyMethod] = []
    seen: set[type] = set()
    for entry_point in sorted(entry_points(group=GROUP), key=lambda found: (_package_of(found), found.name)):
        package = _package_of(entry_point)
        try:
            classes = list(_method_classes(entry_point))
        except _PluginError as error:
            unavailable.append(UnavailableMethod((entry_point.name,), package, str(error)))
            continue
        for found in classes:
            if found in seen:
                continue
            seen.add(found)
            try:
                loaded.append(_checked(found, package))
            except _PluginError as error:
                unavailable.append(UnavailableMethod(_shown_names(found), package, str(error)))
    methods: dict[str, AnyMethod] = {}
    for method in loaded:
        reason = _name_conflict(method, built_in, loaded)
        if reason is None:
            methods[method.name] = method
        else:
            unavailable.append(UnavailableMethod(_names_of(method), str(method.package), reason))
    return Plugins(methods, tuple(unavailable))


def _package_of(entry_point: EntryPoint) -> str:
    """Return "name version" of the package that declares the entry point."""
    found = entry_point.dist
    return "an unknown package" if found is None else f"{found.name} {found.version}"


def _method_classes(entry_point: EntryPoint) -> Iterator[MethodClass]:
    """Import an entry point and yield the method classes that it names.

    Raises
    ------
    _PluginError : the import fails, or there is no method
    """
    place = f"entry point {entry_point.name} = {entry_point.value} of package {_package_of(entry_point)}"
    try:
        value = entry_point.load()
    except Exception as error:  # whatever a module does at its import
        raise _PluginError(f"{place} cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    if is_method_class(value):
        yield value
        return
    if not inspect.ismodule(value):
        raise _PluginError(
            f"{place} is {_article(type(value).__name__)}; expected a module, or a subclass of SpectralMethod or"
            " DirectMethod"
        )
    found = [member for member in vars(value).values() if is_method_class(member) and _is_defined_in(member, value)]
    # A class with a name is meant to be a method; one without may be the abstract base of others.
    methods = [member for member in found if not inspect.isabstract(member) or "name" in vars(member)]
    if not methods:
        raise _PluginError(f"{place} defines no merge method; expected a subclass of SpectralMethod or DirectMethod")
    yield from methods


def is_method_class(value: object) -> TypeGuard[MethodClass]:
    """Return True for a subclass of SpectralMethod or DirectMethod."""
    return isinstance(value, type) and issubclass(value, (SpectralMethod, DirectMethod))


def _is_defined_in(member: type, module: ModuleType) -> bool:
    return member.__module__ == module.__name__ or member.__module__.startswith(module.__name__ + ".")


def _article(word: str) -> str:
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"


def _checked(found: MethodClass, package: str) -> AnyMethod:
    """Return an instance of a plugin's class.

    Raises
    ------
    _PluginError : it is abstract, or lacks an attribute or a description
    """
    place = f"class {found.__module__}.{found.__qualname__} of package {package}"
    missing = sorted(cast("frozenset[str]", vars(found).get("__abstractmethods__", ())))
    if missing:
        raise _PluginError(f"{place} is abstract: define {', '.join(missing)}")
    for attribute in ("name", "summary", "source"):
        text = getattr(found, attribute, None)
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise _PluginError(f"{place}: {attribute} is {text!r}; expected a line of text")
    aliases = cast(object, found.aliases)
    if not isinstance(aliases, tuple) or not all(isinstance(alias, str) for alias in cast("tuple[object]", aliases)):
        raise _PluginError(f"{place}: aliases is {aliases!r}; expected a tuple of names")
    if not isinstance(cast(object, found.algorithm_version), int):
        raise _PluginError(f"{place}: algorithm_version is {found.algorithm_version!r}; expected an integer")
    spectral = issubclass(found, SpectralMethod)
    _check_parameters(place, "Parameters", getattr(found, "Parameters", None), spectral and SpectralParameters)
    _check_parameters(place, "Expert", found.Expert, spectral and ExpertParameters)
    try:
        method = found()
        method.package = package
        if isinstance(method, SpectralMethod):
            _check_decomposition(place, method)
    except _PluginError:
        raise
    except Exception as error:  # whatever the plugin's own code does
        raise _PluginError(f"{place} fails: {type(error).__name__}: {one_line(error)}") from None
    return method


def _check_parameters(place: str, attribute: str, model: object, spectral: type[MethodParameters] | bool) -> None:
    expected = spectral if isinstance(spectral, type) else MethodParameters
    if not isinstance(model, type) or not issubclass(model, expected):
        raise _PluginError(f"{place}: {attribute} is {model!r}; expected a subclass of {expected.__name__}")
    for name, field in cast(type[BaseModel], model).model_fields.items():
        if not field.description:
            raise _PluginError(f"{place}: parameter {name} has no description; add Field(..., description=...)")


def _check_decomposition(place: str, method: SpectralMethod[Any, Any]) -> None:
    """Check that what identifies the decomposition can be part of a key."""
    try:
        parameters = method.Parameters()
    except ValidationError:  # a parameter is required
        return
    identity: object = method.decomposition(parameters)
    try:
        kind = json.loads(json.dumps(identity))["kind"]
    except (TypeError, ValueError, KeyError):
        kind = None
    if not isinstance(kind, str):
        raise _PluginError(f'{place}: decomposition() returns {identity!r}; expected a JSON-able mapping with "kind"')


def _names_of(method: AnyMethod) -> tuple[str, ...]:
    return (method.name, *method.aliases)


def _shown_names(found: MethodClass) -> tuple[str, ...]:
    name: object = getattr(found, "name", None)
    return (name if isinstance(name, str) and name else found.__name__,)


def _name_conflict(method: AnyMethod, built_in: Collection[str], loaded: Iterable[AnyMethod]) -> str | None:
    """Return why a name of this method is not its own, or None.

    Where two plugins have one name neither gets it: which one comes first would decide the result.
    """
    for name in _names_of(method):
        place = f"method {method.name} of package {method.package}: the name {name!r} belongs to"
        if name in built_in:
            return f"{place} a built-in method; rename it"
        others = [other for other in loaded if other is not method and name in _names_of(other)]
        if others:
            return f"{place} a method of package {others[0].package} too; uninstall one of the two, or rename it"
    return None
