"""All faults of a recipe at once: pydantic stops at the first level that fails, so the rest is validated without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

_TYPE = "value_error.faults"
_MOST_FAULTS_SHOWN = 12
_MOST_ROUNDS = 20  # each finds the faults of one level or more
_FORMS = ("dict_type", "list_type", "model_type", "string_type")
# What else is wrong cannot be said without these.
_NEEDED = ("models", "slices", "modules", "base_model", "merge_method")


def faults_error(faults: Sequence[str], unknown: Mapping[Any, str | None] | None = None) -> PydanticCustomError:
    """Return an error of a validator that has found several faults.

    Parameters
    ----------
    unknown : the unknown keys among them, with the known key that is meant, or None
    """
    return PydanticCustomError(_TYPE, "{text}", {"text": "; ".join(faults), "faults": faults, "unknown": unknown or {}})


def find_faults(
    model: type[BaseModel], data: Mapping[str, Any], error: ValidationError, describe: Callable[[Any], str]
) -> list[str]:
    """Return every fault of `data`, one line each.

    After each failure the data is validated again without what failed: unknown keys are renamed to what they mean, or
    removed, and optional keys with invalid values are removed.

    Parameters
    ----------
    model : of which `data` is not a valid instance
    error : of the first validation
    describe : returns the line of one entry of `ValidationError.errors`
    """
    found: list[str] = []
    rest: dict[str, Any] = deepcopy(dict(data))
    renamed: set[tuple[int | str, ...]] = set()
    for _ in range(_MOST_ROUNDS):
        items: list[Any] = list(error.errors(include_url=False))
        if any(item["type"] in _FORMS and item["loc"] in renamed for item in items):
            break  # another key was meant
        found += [line for item in items for line in _lines(item, describe) if line not in found]
        if not any([_repair(model, rest, item, renamed) for item in items]):
            break
        try:
            model.model_validate(rest)
        except ValidationError as next_error:
            error = next_error
        else:
            break
    return found


def join_faults(faults: Sequence[str]) -> str:
    """Return the faults as one line, numbered where there are several."""
    if len(faults) == 1:
        return faults[0]
    shown = [f"({number}) {fault}" for number, fault in enumerate(faults[:_MOST_FAULTS_SHOWN], 1)]
    more = f"; and {len(faults) - _MOST_FAULTS_SHOWN} more" if len(faults) > _MOST_FAULTS_SHOWN else ""
    return f"{len(faults)} faults: {'; '.join(shown)}{more}"


def _lines(item: Any, describe: Callable[[Any], str]) -> Iterator[str]:
    if item["type"] != _TYPE:
        yield describe(item)
        return
    for fault in item["ctx"]["faults"]:
        yield describe({**item, "msg": fault})


def _repair(model: type[BaseModel], data: dict[str, Any], item: Any, renamed: set[tuple[int | str, ...]]) -> bool:
    """Change the data so that a fault does not hide others; return whether this was possible."""
    if item["type"] == _TYPE:
        return _repair_unknown(data, item["loc"], item["ctx"]["unknown"], renamed)
    key = item["loc"][0] if item["loc"] else None
    field = model.model_fields.get(str(key))
    if field is None or field.is_required() or key in _NEEDED or key not in data:
        return False
    del data[str(key)]
    return True


def _repair_unknown(
    data: dict[str, Any],
    place: tuple[int | str, ...],
    unknown: Mapping[Any, str | None],
    renamed: set[tuple[int | str, ...]],
) -> bool:
    """Rename unknown keys with faults of their own, or without which the rest makes no sense; remove the others."""
    target: Any = data
    for part in place:
        try:
            target = target[part]
        except (KeyError, IndexError, TypeError):  # the place is one of a normal form, not of what was written
            return False
    if not isinstance(target, dict) or not unknown:
        return False
    mapping = cast("dict[Any, Any]", target)
    changed = False
    for key, meant in unknown.items():
        if key in mapping:
            value = mapping.pop(key)
            changed = True
            if meant is not None and (meant in _NEEDED or isinstance(value, Mapping | list)):
                mapping.setdefault(meant, value)
                renamed.add((*place, meant))
    return changed
