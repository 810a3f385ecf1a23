"""A recipe may be given in any form that reaches a worker: all mean the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from eigenmerge.core.errors import RecipeError, StoreError
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.steps.read_recipe import check_recorded_argument, read_recipe

TEXT = "merge_method: task_arithmetic\nbase_model: /models/base\nmodels:\n  - model: /models/a\n"


def test_all_forms_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(TEXT)
    memory = fsspec.filesystem("memory")
    memory.pipe("/recipes/recipe.yml", TEXT.encode())
    try:
        expected = recipe_from_mapping(yaml.safe_load(TEXT))
        one_line = yaml.safe_dump(yaml.safe_load(TEXT), default_flow_style=True, width=1000).strip()
        uris = (path.as_uri(), "memory://recipes/recipe.yml")
        for form in (expected, yaml.safe_load(TEXT), TEXT, one_line, path, str(path), *uris):
            assert read_recipe(form) == expected
    finally:
        memory.rm("/recipes", recursive=True)


def test_what_is_wrong_is_said_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing"):
        read_recipe("memory://recipes/nothing.yml")
    with pytest.raises(RecipeError, match="unknown key 'merge_metod'"):
        read_recipe({"merge_metod": "linear"})
    fsspec.filesystem("memory").pipe("/recipes/bad.yml", b"- a list\n")
    with pytest.raises(RecipeError, match=r"recipes/bad\.yml: is a list"):
        read_recipe("memory://recipes/bad.yml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere.yml", str(tmp_path / "nowhere.yml"), (tmp_path / "nowhere.yml").as_uri()):
        with pytest.raises(RecipeError, match=r"nowhere\.yml: recipe cannot be read: No such file"):
            read_recipe(missing)
    with pytest.raises(RecipeError, match="recipe cannot be read: Is a directory"):
        read_recipe(str(tmp_path))
    with pytest.raises(RecipeError, match="recipe cannot be read: not a path"):
        read_recipe("recipe\0.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yml: is not text in UTF-8"):
        read_recipe(tmp_path / "binary.yml")
    (tmp_path / "odd: name.yml").write_text(TEXT)
    assert read_recipe(str(tmp_path / "odd: name.yml")) == read_recipe(TEXT)


@pytest.mark.parametrize("options", [{"key": "AKIAEXAMPLE", "secret": "example-secret"}, {"s3": {"token": "example"}}])
def test_credentials_are_refused_where_prefect_would_record_them(tmp_path: Path, options: dict[str, Any]) -> None:
    content = {"merge_method": "linear", "models": ["a", "b"], "storage_options": options}
    one_line = yaml.safe_dump(content, default_flow_style=True, width=1000).strip()
    for form in (content, yaml.safe_dump(content), one_line):
        with pytest.raises(RecipeError, match=r"storage_options: .* a file, a profile or the environment") as caught:
            read_recipe(form)
        assert "example" not in str(caught.value)
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(content))
    assert read_recipe(tmp_path / "recipe.yml").storage_options == options
    harmless = {
        **content,
        "storage_options": {"endpoint_url": "http://127.0.0.1:9000", "profile": "merging", "anon": True},
    }
    assert read_recipe(harmless).storage_options == harmless["storage_options"]


@pytest.mark.parametrize("key", ["storage_option", "store_options"])
def test_a_misspelled_key_with_credentials_is_not_recorded(key: str) -> None:
    options = {"key": "AKIAPLANTED", "secret": "planted-secret"}
    mapping = {"merge_method": "linear", "models": [{"model": "a"}], key: options}
    for recipe in (mapping, json.dumps(mapping, indent=1)):
        with pytest.raises(RecipeError, match="is not a key of a recipe") as refused:
            check_recorded_argument("recipe", recipe)
        assert "planted" not in str(refused.value).lower()
    with pytest.raises(RecipeError, match="credentials"):
        check_recorded_argument("destination", Path("s3://key:pl/anted@bucket/out"))


ONE_MODEL = "models: [{model: /a, parameters: {weight: 1}}]"
GIVEN = "exactly one of models, slices, modules must be given"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("models: []", f"{GIVEN}; models is empty"),
        ("models:", f"{GIVEN}; found none"),
        ("models: ''", "models: expected a list, found ''"),
        ("models: [null]", r"models\[0\]: has no value; expected a mapping"),
        ("models: [{}]", r"models\[0\].model: is missing"),
        ("models: ['']", r"models\[0\].model: is empty; expected a path"),
        ("models: [{model: }]", r"models\[0\].model: has no value; expected text"),
        ("models: [{model: ' '}]", r"models\[0\].model: is empty; expected a path"),
        ("models: [{model: {}}]", r"models\[0\].model: expected text, found {}"),
        ("slices: []", f"{GIVEN}; slices is empty"),
        ("slices: [null]", r"slices\[0\]: has no value; expected a mapping"),
        ("slices: [{}]", r"slices\[0\].sources: is missing"),
        ("slices: [{sources: []}]", r"slices\[0\].sources: is empty; expected at least one entry"),
        ("slices: [{sources: }]", r"slices\[0\].sources: has no value; expected a list"),
        ("slices: [{sources: [{}]}]", r"slices\[0\].sources\[0\].model: is missing"),
        ("slices: [{sources: [{model: /a, layer_range: }]}]", r"slices\[0\].sources\[0\].layer_range: has no value"),
        ("modules: {}", f"{GIVEN}; modules is empty"),
        ("modules: []", r"modules: expected a mapping, found \[\]"),
        ("modules: {a: {}}", "modules.a: exactly one of models, slices must be given inside a module"),
        ("modules: {a: }", "modules.a: has no value; expected a mapping"),
        ("modules: {'': {models: [{model: /a}]}}", "modules: has a module without a name"),
        (f"{ONE_MODEL}\nparameters: []", r"parameters: expected a mapping, found \[\]"),
        (f"{ONE_MODEL}\nparameters: {{weight: []}}", "parameters.weight: is an empty list"),
        (f"{ONE_MODEL}\nrules:", "rules: has no value; expected a list"),
        (f"{ONE_MODEL}\nrules: [{{}}]", r"rules\[0\].match: is missing"),
        (f"{ONE_MODEL}\nstorage_options: []", "storage_options: expected a mapping$"),
        (f"{ONE_MODEL}\ntokenizer: {{source: union, tokens: {{a: }}}}", "tokenizer.tokens.a: has no value"),
        (f"{ONE_MODEL}\nbase_model: ''", "base_model: is empty; expected a path"),
        (f"{ONE_MODEL}\nbase_model: []", r"base_model: expected text, found \[\]"),
        (f"{ONE_MODEL}\ndtype: ''", "dtype: is ''; expected one of"),
    ],
)
def test_an_empty_part_of_a_recipe_is_one_clear_line(part: str, message: str) -> None:
    text = f"merge_method: linear\n{part}\n"
    for form in (text, yaml.safe_load(text)):
        with pytest.raises(RecipeError, match=rf"^recipe: (2 faults: \(1\) )?{message}") as caught:
            read_recipe(form)
        assert "\n" not in str(caught.value) and "Input should be" not in str(caught.value)


@pytest.mark.parametrize("part", ["parameters:", "parameters: {}", "rules: []", "storage_options:", "tokenizer:"])
def test_a_part_that_may_be_left_out_may_be_empty(part: str) -> None:
    text = f"merge_method: linear\n{ONE_MODEL}\n"
    assert read_recipe(f"{text}{part}\n").models == read_recipe(text).models


@pytest.mark.parametrize(
    ("content", "found"),
    [("", "empty"), ("\n", "empty"), ("# nothing\n", "empty"), ("---\n---\n", "empty"), ("- a\n", "a list"),
     ("[]\n", "a list"), ("null\n", "a single value"), ("hello\n", "a single value"), ("''\n", "empty")],
)  # fmt: skip
def test_a_file_that_is_not_a_mapping(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "recipe.yml").write_text(content)
    with pytest.raises(RecipeError, match=rf"recipe\.yml: is {found}; expected a YAML mapping"):
        read_recipe(tmp_path / "recipe.yml")


def test_what_is_not_a_recipe_at_all() -> None:
    for value in (None, [], 3):
        with pytest.raises(RecipeError, match="recipe: expected a mapping, a path, a URI or YAML text; found"):
            read_recipe(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for empty in ("", "  "):
        with pytest.raises(RecipeError, match="recipe: is empty text"):
            read_recipe(empty)
