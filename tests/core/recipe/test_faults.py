"""All faults of a recipe are found at once, and none that is only the consequence of another."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.recipe.recipe import recipe_from_mapping

VALID: dict[str, Any] = {"merge_method": "swudi", "base_model": "/b", "models": ["/a"]}


def faults(**changes: Any) -> str:
    data = {key: value for key, value in (VALID | changes).items() if value is not ...}
    before = repr(data)
    with pytest.raises(RecipeError) as error:
        recipe_from_mapping(data)
    assert repr(data) == before
    return str(error.value).removeprefix("recipe: ")


def test_one_fault_is_not_numbered() -> None:
    assert faults(dtpye="bfloat16") == "unknown key 'dtpye'; did you mean 'dtype'?"


def test_faults_of_every_level() -> None:
    found = faults(
        dtpye="x",
        lm_head="foo",
        models=[{"model": "/a", "parametres": {"wieght": 1}}, {"model": "/c", "weihgt": 2}],
        parameters={"exp_tme": 3, "rank_ratio": 7},
        rules=[{"match": "*", "parameters": {"anchr": "sum"}}],
    )
    assert found.startswith("8 faults: (1) ")
    for expected in (
        "unknown key 'dtpye'; did you mean 'dtype'?",
        "lm_head: Input should be 'mean', 'base' or 'merge', found 'foo'",
        "models[0]: unknown key 'parametres'; did you mean 'parameters'?",
        "models[1]: unknown key 'weihgt'",
        "parameters.exp_tme: swudi has no such parameter; did you mean 'exp_time'?",
        "parameters.rank_ratio: is 7: ",
        "models[0].parameters.wieght: swudi has no such parameter; did you mean 'weight'?",
        "rules[0].parameters.anchr: swudi has no such parameter; did you mean 'anchor'?",
    ):
        assert expected in found, found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"merge_method": ..., "merge_methd": "swudi"}, "unknown key 'merge_methd'; did you mean 'merge_method'?"),
        ({"models": ..., "modles": ["/a"]}, "unknown key 'modles'; did you mean 'modules'?"),
        ({"random_seed": 3, "sead": 4}, "unknown key 'sead'; did you mean 'seed'?"),
        ({"dtype": "floot"}, "dtype: is 'floot'; expected one of float64, float32, bfloat16, float16"),
    ],
)
def test_no_fault_follows_from_another(changes: dict[str, Any], expected: str) -> None:
    assert faults(**changes) == expected


def test_a_secret_is_not_repeated() -> None:
    assert "hush" not in faults(storage_options={"key": "hush"}, dtpye="x") + faults(storage_options="hush", conv=3)


def test_many_faults_end() -> None:
    found = faults(**{f"unknown{number}": 1 for number in range(40)})
    assert found.startswith("40 faults: ") and found.endswith("; and 28 more")
