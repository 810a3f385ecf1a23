"""Recipes: what is accepted, what is refused with which message, and that credentials are not shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.recipe.recipe import Recipe, recipe_from_mapping
from eigenmerge.core.recipe.strict_yaml import parse_yaml_mapping

TIES = """
merge_method: ties
base_model: base
models:
  - model: one
    parameters: {weight: 0.5, density: [0.2, 1.0]}
  - model: two@main+lora
    parameters:
      weight:
        - {filter: self_attn, value: [0, 0.5, 1]}
        - value: 0.3
parameters: {normalize: true, int8_mask: true, lambda: 0.7}
dtype: bfloat16
out_dtype: torch.float16
tokenizer_source: base
"""


def recipe_of(text: str) -> Recipe:
    return recipe_from_mapping(parse_yaml_mapping(text, "recipe"))


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_of(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_mergekit_recipe_is_accepted() -> None:
    recipe = recipe_of(TIES)
    assert recipe.merge_method == "ties"
    assert recipe.expert_references == ["one", "two@main+lora"]
    assert (recipe.dtype, recipe.out_dtype) == ("bfloat16", "float16")
    assert recipe.vocabulary_source == "base"


def test_mergekits_long_forms_of_a_model() -> None:
    recipe = recipe_of(
        "merge_method: linear\n"
        "models:\n"
        "  - model: {model: {path: a, revision: v1}, lora: {path: b}}\n"
        "  - model: {path: c}\n"
        "  - model: d\n"
    )
    assert recipe.expert_references == ["a@v1+b", "c", "d"]


def test_slices_and_one_module() -> None:
    slices = "slices: [{sources: [{model: a, layer_range: [0, 4]}]}, {sources: [{model: b, layer_range: [2, 4]}]}]"
    assert recipe_of(f"merge_method: passthrough\n{slices}").expert_references == ["a", "b"]
    recipe = recipe_of("merge_method: linear\nmodules: {default: {models: [{model: a}], parameters: {weight: 2}}}")
    assert recipe.expert_references == ["a"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("merge_metod: ties\nmodels: []\n", "unknown key 'merge_metod'; did you mean 'merge_method'?"),
        ("merge_method: tise\nmodels: [a]\n", "merge_method: unknown merge method 'tise'; did you mean 'ties'?"),
        ("merge_method: ties\nbase_model: b\n", "exactly one of models, slices, modules"),
        ("merge_method: ties\nmodels: [a]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "found models and"),
        (
            "merge_method: ties\nmodels: [{model: a, parametres: {}}]\n",
            "models[0]: unknown key 'parametres'; did you mean",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [a, c, {model: d, parameters: {wieght: 1}}]\n",
            "models[2].parameters.wieght: ties has no such parameter; did you mean 'weight'?",
        ),
        (
            "merge_method: ties\nmodels: [{model: a, parameters: {normalize: true}}]\n",
            "models[0].parameters.normalize: applies to the whole merge",
        ),
        ("merge_method: ties\nmodels: [a]\nparameters: {densty: 1}\n", "parameters.densty: ties has no such parameter"),
        ("merge_method: ties\nmodels: [a]\nparameters: {density: 1.5}\n", "parameters.density: is 1.5"),
        ("merge_method: ties\nmodels: [a]\nparameters: {density: [0.1, high]}\n", "parameters.density: is 'high'"),
        (
            "merge_method: ties\nmodels: [a]\nparameters: {density: {filter: a}}\n",
            "parameters.density: has no `value`",
        ),
        ("merge_method: ties\nmodels: [a]\ndtype: int8\n", "dtype: is 'int8'; expected one of float64"),
        ("merge_method: ties\nmodels: [3]\n", "models[0]"),
        ("merge_method: ties\nmodels: [{parameters: {}}]\n", "models[0].model: is missing"),
        ("merge_method: ties\nmodels: ['']\n", "models[0].model: is empty"),
        ("merge_method: ties\nmodels: [{model: {model: a, override_architecture: X}}]\n", "override_architecture"),
        ("merge_method: ties\nmodels: [a]\nmax_memory: lots\n", "max_memory: is 'lots'; expected a size"),
        ("merge_method: ties\nmodels: [a]\nrules: [{match: x}]\n", "rules[0]: sets nothing"),
        ("merge_method: ties\nmodels: [a]\nrules: [{match: 're:(', action: mean}]\n", "is not a regular expression"),
        ("merge_method: ties\nmodels: [a]\nrules: [{match: x, action: drop}]\n", "rules[0].action"),
        ("merge_method: ties\nmodels: [a]\nrules: [{match: x, method: nope}]\n", "rules[0].method: unknown merge"),
        (
            "merge_method: ties\nmodels: [a]\nrules: [{match: x, method: swudi, parameters: {expt: 1}}]\n",
            "swudi has no",
        ),
        (
            "merge_method: ties\nmodels: [a]\ncalibration: {svc: }\n",
            "calibration: svc calibrates what a merge adds to base_model, and ties has none here; set base_model",
        ),
        ("merge_method: swudi\nmodels: [a]\ncalibration: {svc: {alhpa: 1}}\n", "calibration.svc: unknown key 'alhpa'"),
        ("merge_method: ties\nmodels: [a]\ntokenizer_source: base\ntokenizer: {source: base}\n", "keep one of them"),
        ("merge_method: ties\nmodels: [a]\ntokenizer: {tokens: {x: {}}}\n", "tokenizer.tokens.x.source: is missing"),
        ("merge_method: ties\nmodules: {a: {models: [x]}, b: {}}\n", "modules.b: exactly one of models, slices"),
        ("preset: clip-vit-b32\nmodels: [a]\n", "preset 'clip-vit-b32' does not exist; did you mean 'clip-vit-b32-8'?"),
        ("preset: llama-3.2-3b\nmerge_method: ties\nmodels: [a]\n", "preset 'llama-3.2-3b' has no setting for"),
        ("merge_method: ties\nmodels: [a]\nmodels: [b]\n", "duplicate key 'models'"),
        ("- merge_method: ties\n- models: [a]\n", "is a list; expected a YAML mapping"),
    ],
)
def test_errors_name_the_place_in_the_recipe(text: str, says: str) -> None:
    assert says in refused(text)


def test_canonical_is_json_and_loads_again_to_the_same() -> None:
    for text in (TIES, "preset: qwen2-vl-7b\nbase_model: b\nmodels: [a]\ncalibration: {svc: {alpha: 1}}\n"):
        canonical = recipe_of(text).canonical()
        assert recipe_from_mapping(json.loads(json.dumps(canonical))).canonical() == canonical


def test_canonical_contains_neither_locations_nor_credentials() -> None:
    text = TIES + (
        "store: s3://bucket/store\nmax_memory: 8GB\nrunner: dask\n"
        "storage_options: {key: AKIAPLANTED, secret: planted-secret, endpoint_url: 'http://localhost'}\n"
    )
    recipe = recipe_of(text)
    assert recipe.storage_options is not None
    assert recipe.storage_options["secret"] == "planted-secret"
    for shown in (json.dumps(recipe.canonical()), repr(recipe), str(recipe), recipe.model_dump_json()):
        assert "PLANTED" not in shown
        assert "planted" not in shown
    assert recipe.canonical() == recipe_of(TIES).canonical()
    assert recipe.runner.kind == "dask"


@pytest.mark.parametrize("key", ["base_model", "store", "tokenizer_source"])
def test_credentials_in_an_address_are_refused_and_not_repeated(key: str) -> None:
    message = refused(f"merge_method: ties\nmodels: [a]\n{key}: s3://AKIA:planted@bucket/x\n")
    assert f"{key}: contains credentials" in message
    assert "planted" not in message


def test_invalid_storage_options_are_not_repeated() -> None:
    message = refused("merge_method: ties\nmodels: [a]\nstorage_options: planted-secret\n")
    assert "storage_options" in message
    assert "planted" not in message


def test_float64_dtype_means_float64_arithmetic() -> None:
    assert recipe_of("merge_method: linear\nmodels: [a]\ndtype: float64").arithmetic_dtype == "float64"
    assert recipe_of("merge_method: linear\nmodels: [a]\ndtype: float16").arithmetic_dtype == "float32"
    text = "merge_method: linear\nmodels: [a]\ndtype: float64\narithmetic: float32"
    assert recipe_of(text).arithmetic_dtype == "float32"


def test_a_thousand_experts_are_read_quickly() -> None:
    lines = [f"  - model: /models/e{i}\n    parameters: {{weight: {i / 1000}, density: 0.5}}\n" for i in range(1000)]
    recipe = recipe_of("merge_method: ties\nbase_model: b\nmodels:\n" + "".join(lines))
    assert len(recipe.expert_references) == 1000


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=6)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = [*Recipe.model_fields, "unknown"]


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), trees, max_size=4), st.booleans())
def test_only_eigenmerge_errors_are_raised(extra: dict[str, Any], complete: bool) -> None:
    valid = {"merge_method": "ties", "base_model": "b", "models": ["a", "c"]} if complete else {}
    try:
        recipe = recipe_of(yaml.safe_dump({**valid, **extra}) + "\n\n")
    except RecipeError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(recipe.canonical())
