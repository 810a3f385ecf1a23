"""Generate the pages of the site that are no files in docs/: the front page and the three references.

`mkdocs-gen-files` runs this file. Nothing of it is stored: keys of recipes come from the JSON Schema of
`eigenmerge schema`, commands from typer, Python names from the public package.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer.cli
import typer.main
from typer.core import TyperGroup

import eigenmerge
from eigenmerge.core.recipe.json_schema import recipe_schema
from eigenmerge.deployments.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # for the hook of this folder
from links import AT_THE_TOP, adapt_links  # noqa: E402

_HIDDEN = {"$defs", "$schema"}
_HELPERS = {"SettingForms"}


def write_page(name: str, text: str, source: str) -> None:
    """Write a page of the site; its edit link leads to `source`, a path in the repository."""
    with mkdocs_gen_files.open(name, "w") as file:
        file.write(text)
    mkdocs_gen_files.set_edit_path(name, f"../{source}")


def write_top_pages() -> None:
    """Write the pages that are files at the top of the repository."""
    for source, page in AT_THE_TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        write_page(page, adapt_links(text, source, page), source)


def command_page() -> str:
    """Return the page of all commands, as typer describes them."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="eigenmerge")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="eigenmerge", title="Commands")
    assert isinstance(command, TyperGroup)
    for name, one in command.commands.items():  # typer cuts these lines
        about = " ".join((one.help or "").partition("\n\n")[0].split())
        line = f"* [`{name}`](#eigenmerge-{name}): {about}"
        text = re.sub(rf"^\* `{name}`: .*$", line, text, count=1, flags=re.MULTILINE)
    return text


def recipe_page() -> str:
    """Return the page of all keys of a recipe, from its JSON Schema."""
    schema = recipe_schema()
    lines = [
        "# Keys of a recipe",
        "",
        "[Recipes](../recipes.md) explains the keys with examples. This page lists all of them, from the schema that",
        "`eigenmerge schema` prints. Parameters of methods are on the pages of the [methods](../methods.md).",
        "",
        *_key_table(schema["properties"]),
    ]
    used = _reachable(schema)
    for name in sorted(used):
        definition = schema["$defs"][name]
        options = [definition, *definition.get("anyOf", [])]
        properties = next((option["properties"] for option in options if "properties" in option), None)
        if properties:
            about = next((option["description"] for option in options if "description" in option), "")
            lines += ["", f"## {name}", "", " ".join(about.split()), "", *_key_table(properties)]
    return "\n".join(lines) + "\n"


def _reachable(schema: dict[str, Any]) -> set[str]:
    """Return the names of the definitions that the keys of a recipe refer to, at any depth."""
    found: set[str] = set()
    waiting = [schema["properties"]]
    while waiting:
        for name in set(_references(waiting.pop())) - found - _HELPERS:
            found.add(name)
            waiting.append(schema["$defs"][name])
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _key_table(properties: dict[str, Any]) -> list[str]:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, about in properties.items():
        default = f"`{about['default']}`" if about.get("default") not in (None, [], {}) else ""
        if isinstance(about.get("default"), dict):
            default = ""
        meaning = " ".join(about.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_form(about)} | {default} | {meaning} |")
    return lines


def _form(about: dict[str, Any]) -> str:
    """Return what a value may be, in words: a type, a choice, or the name of a table on this page."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return "a setting" if name in _HELPERS else f"[{name}](#{name.lower()})"
    if "enum" in about:
        values = about["enum"]
        return ", ".join(f"`{value}`" for value in values) if len(values) <= 12 else "a name"
    if "const" in about:
        return f"`{about['const']}`"
    for joint in ("anyOf", "allOf"):
        if joint in about:
            forms = [_form(option) for option in about[joint] if option.get("type") != "null"]
            return ", or ".join(dict.fromkeys(form for form in forms if form))
    kind = about.get("type", "")
    if kind == "array":
        inner = _form(about["items"]) if isinstance(about.get("items"), dict) else ""
        return f"list of {inner}" if inner else "list"
    if kind == "object":
        inner = about.get("additionalProperties")
        form = _form(inner) if isinstance(inner, dict) else ""
        return f"mapping to {form}" if form else "mapping"
    return str(kind)


def python_page() -> str:
    """Return the page of all public names, whose text mkdocstrings inserts."""
    names = [name for name in dir(eigenmerge) if not name.startswith("__")]
    functions = [name for name in names if isfunction(getattr(eigenmerge, name))]
    classes = [name for name in names if isclass(getattr(eigenmerge, name))]
    errors = [name for name in classes if issubclass(getattr(eigenmerge, name), BaseException)]
    others = [name for name in names if name not in functions and name not in classes]
    lines = [
        "# Python",
        "",
        "`import eigenmerge` loads neither torch nor Prefect; each name is imported at its first use.",
    ]
    groups = {
        "Functions": functions,
        "Classes": [name for name in classes if name not in errors],
        "Errors": errors,
        "Other names": others,
    }
    for title, members in groups.items():
        if members:
            lines += ["", f"## {title}"]
        for name in members:
            value = getattr(eigenmerge, name)
            place = f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else ""
            if place:
                lines += ["", f"::: {place}", "    options: {heading_level: 3}"]
            else:
                lines += ["", f"* `{name}`: `{value}`"]
    return "\n".join(lines) + "\n"


write_top_pages()
with mkdocs_gen_files.open("assets/site.css", "w") as style:
    style.write(".md-typeset td:first-child code { white-space: nowrap; }\n")
write_page("reference/recipe.md", recipe_page(), "core/recipe/recipe.py")
write_page("reference/commands.md", command_page(), "deployments/cli/app.py")
write_page("reference/python.md", python_page(), "deployments/face/__init__.pyi")
