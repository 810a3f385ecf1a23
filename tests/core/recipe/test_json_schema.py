"""The JSON Schema of a recipe accepts what `Recipe` accepts, and finds what editors should underline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.recipe.json_schema import recipe_schema
from eigenmerge.core.recipe.stages import make_stages
from eigenmerge.core.recipe.strict_yaml import parse_yaml_documents

from ...mergekit.forms import FORMS

DOCS = Path(__file__).parents[3] / "docs"
MODELS = "base_model: b\nmodels: [x, y]\n"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_schema(built_in_methods())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def faults(validator: jsonschema.Draft202012Validator, text: str) -> list[str]:
    documents = parse_yaml_documents(text, "recipe")
    return [error.message for document in documents for error in validator.iter_errors(document)]


def test_every_form_of_mergekit_that_is_read_is_accepted(validator: jsonschema.Draft202012Validator) -> None:
    checked = 0
    for form in FORMS:
        text = re.sub(r"\{(\w+)\}", r"model-\1", form.text)
        try:
            make_stages(parse_yaml_documents(text, "recipe"), "recipe", "OUT")
        except RecipeError:
            continue
        checked += 1
        assert faults(validator, text) == [], form.name
    assert checked > 60


def test_every_recipe_of_the_docs_is_accepted(validator: jsonschema.Draft202012Validator) -> None:
    pages = [page for page in DOCS.rglob("*.md") if page.name != "own-method.md"]  # it has a method of a package
    texts = [text for page in pages for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    recipes = [text for text in texts if "merge_method:" in text and ("models:" in text or "slices:" in text)]
    assert len(recipes) >= 3
    for text in recipes:
        assert faults(validator, text) == [], text


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: swudi_a\nparameters: {rank_rule: [participation_sqrt]}\n",
        "merge_method: swudi\nparameters: {exp_time: '1e3', rank_ratio: [0.5, 0.9]}\n",
        "merge_method: ties\nparameters: {density: [{filter: mlp, value: 0.5}, {value: 0.3}], lambda: 1}\n",
        "merge_method: ties\noutput: adapter\nrunner: dask\nmax_memory: 16GB\ncalibration: {svc: }\n",
        "preset: clip-vit-b32-8\n",
        "merge_method: linear\nrandom_seed: 3\ndtype: bf16\n",
    ],
)
def test_short_forms_are_accepted(text: str, validator: jsonschema.Draft202012Validator) -> None:
    assert faults(validator, text + MODELS) == []


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: swudi_b\n",
        "merge_method: swudi_a\nparameters: {rank_rul: participation}\n",
        "merge_method: swudi_a\nparameters: {scale: large}\n",
        "merge_methods: swudi_a\n",
        "merge_method: ties\nspectra: all\n",
        "merge_method: ties\nmax_memory: much\n",
        "merge_method: ties\nrules: [{match: x, acton: mean}]\n",
        "merge_method: ties\noutput: adaptor\n",
        "dtype: bfloat16\n",
    ],
)
def test_faults_are_found(text: str, validator: jsonschema.Draft202012Validator) -> None:
    assert faults(validator, text + MODELS)


def test_models_in_every_form(validator: jsonschema.Draft202012Validator) -> None:
    own = {"model": "x", "parameters": {"weight": [0.1, 1]}}
    forms: list[Any] = ["x", {"model": "x"}, {"model": {"path": "x", "revision": "r"}}, own]
    assert not list(validator.iter_errors({"merge_method": "ties", "base_model": "b", "models": forms}))
    assert not list(validator.iter_errors({"merge_method": "linear", "models": {"glob": "c/*", "last": 3}}))
    assert list(validator.iter_errors({"merge_method": "ties", "models": [{"molde": "x"}]}))
