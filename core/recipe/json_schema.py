"""JSON Schema of a recipe, for completion and checks in editors; the validation of a run is that of `Recipe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..numerics.method import AnyMethod, MethodParameters
from ..numerics.registry import all_methods
from .mergekit_forms import has_no_effect, known_parameters
from .presets import PRESETS
from .recipe import Recipe
from .soup import SoupModels

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_NUMBER_AS_TEXT = {"type": "string", "pattern": r"^[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$"}


def recipe_schema(methods: Mapping[str, AnyMethod] | None = None) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one document of a recipe.

    The schema accepts every recipe that `Recipe` accepts. It does not express what depends on several keys, except that
    the names of parameters depend on `merge_method`.

    Parameters
    ----------
    methods : by name; None: the built-in ones and those of installed packages
    """
    methods = all_methods() if methods is None else methods
    schema = Recipe.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    properties: dict[str, Any] = schema["properties"]

    for name in ("InputModel", "TokenSource"):
        reference: dict[str, Any] = definitions["SliceSource"]["properties"]["model"]
        definitions[name] = {"anyOf": [{"anyOf": reference["anyOf"]}, definitions[name]]}
    for name in ("OutputOptions", "RunnerOptions"):
        word = definitions[name]["properties"]["format" if name == "OutputOptions" else "kind"]
        definitions[name] = {"anyOf": [{"enum": word["enum"]}, definitions[name]]}

    soup = SoupModels.model_json_schema()
    definitions |= soup.pop("$defs", {}) | {"SoupModels": soup}
    for holder in (properties, definitions["OutputModule"]["properties"]):
        holder["models"]["anyOf"].append({"$ref": "#/$defs/SoupModels"})

    names = sorted({name for method in methods.values() for name in (method.name, *method.aliases)})
    properties["merge_method"] = {"enum": names, "description": "the method; `eigenmerge methods` describes each"}
    definitions["Rule"]["properties"]["method"]["anyOf"] = [{"enum": names}, {"type": "null"}]
    properties["preset"]["anyOf"] = [{"enum": sorted(PRESETS)}, {"type": "null"}]
    properties["fingerprint"]["enum"] = [*properties["fingerprint"]["enum"], "stat"]
    properties["random_seed"] = {**properties["seed"], "description": "mergekit's name of seed"}
    properties["out_path"] = {"type": "string", "description": "name of this document in mergekit-mega's form"}
    schema["required"] = []
    schema["anyOf"] = [{"required": ["merge_method"]}, {"required": ["preset"]}]

    definitions["SettingForms"] = _setting_forms()
    known: dict[str, Any] = {}
    for method in methods.values():
        known |= _settings(method.Expert) | _settings(method.Parameters)
    definitions["Parameters"] = {"type": "object", "properties": dict(sorted(known.items()))}
    for place in ("InputModel", "SliceSource", "OutputSlice", "OutputModule", "Rule", "SoupModels"):
        _set_parameters(definitions[place], {"$ref": "#/$defs/Parameters"})
    _set_parameters(schema, {"$ref": "#/$defs/Parameters"})
    schema["allOf"] = [_for_method(method) for method in methods.values()]
    return {"$schema": DIALECT, "title": "Eigenmerge recipe", **{k: v for k, v in schema.items() if k != "title"}}


def _set_parameters(place: dict[str, Any], schema: dict[str, Any]) -> None:
    target = place["anyOf"][-1] if "properties" not in place else place
    target["properties"]["parameters"] = {
        "anyOf": [schema, {"type": "null"}],
        "description": target["properties"]["parameters"].get("description", ""),
    }


def _for_method(method: AnyMethod) -> dict[str, Any]:
    """Return the condition on the global parameters of one method: its own, and those that are ignored."""
    own = _settings(method.Expert) | _settings(method.Parameters)
    ignored = {
        name: {"description": f"no effect on {method.name}"}
        for name in sorted(known_parameters())
        if name not in own and has_no_effect(name, method)
    }
    parameters = {"type": "object", "properties": {**own, **ignored}, "additionalProperties": False}
    return {
        "if": {"properties": {"merge_method": {"enum": [method.name, *method.aliases]}}, "required": ["merge_method"]},
        "then": {"properties": {"parameters": {"anyOf": [parameters, {"type": "null"}]}}},
    }


def _settings(model: type[MethodParameters]) -> dict[str, Any]:
    """Return the schema of each parameter: a value, or one of the forms of a setting."""
    schema = model.model_json_schema(by_alias=True)
    found: dict[str, Any] = {}
    for name, field in schema.get("properties", {}).items():
        value = {key: part for key, part in field.items() if key not in ("title", "default", "description")}
        found[name] = {
            "anyOf": [*value.get("anyOf", [value]), *_texts(value), {"$ref": "#/$defs/SettingForms"}],
            **{key: field[key] for key in ("description", "default") if key in field},
        }
    return found


def _texts(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return further forms of a value that YAML's readers give: "1e-5" is a text, and 1 stands for true."""
    parts: Iterable[Mapping[str, Any]] = [schema, *schema.get("anyOf", ())]
    types = {part.get("type") for part in parts}
    texts: list[dict[str, Any]] = [_NUMBER_AS_TEXT] if types & {"number", "integer"} else []
    return texts + ([{"enum": [0, 1]}] if "boolean" in types else [])


def _setting_forms() -> dict[str, Any]:
    """Return the schema of a gradient over the layers and of values by filter (settings.py)."""
    scalar = {"type": ["number", "string", "boolean", "null"]}
    gradient = {"type": "array", "items": scalar, "minItems": 1}
    case = {
        "type": "object",
        "properties": {"filter": {"type": ["string", "null"]}, "value": {"anyOf": [scalar, gradient]}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {
        "description": "a gradient over the layers such as [0.2, 1.0], or values by filter: {filter: mlp, value: 0.5}",
        "anyOf": [gradient, case, {"type": "array", "items": case, "minItems": 1}],
    }
