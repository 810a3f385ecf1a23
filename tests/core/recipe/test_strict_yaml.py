"""Strict YAML: what is refused and how it is reported."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.recipe.strict_yaml import parse_yaml_mapping

BILLION = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def test_a_mapping_is_read() -> None:
    assert parse_yaml_mapping("a: 1\nb: [1, two]\n", "recipe") == {"a": 1, "b": [1, "two"]}


def test_aliases_and_merge_keys_work() -> None:
    text = "defaults: &d {weight: 1}\none: *d\ntwo: {<<: *d, density: 2}\n"
    assert parse_yaml_mapping(text, "recipe")["two"] == {"weight": 1, "density": 2}


@pytest.mark.parametrize("number", ["1:30", "10:20:30.5", "010", "-017"])
def test_a_number_to_another_base_is_refused(number: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe: a\.b: YAML reads") as caught:
        parse_yaml_mapping(f"a: {{b: {number}}}", "recipe")
    assert number not in str(caught.value)  # it may be a password


def test_other_forms_of_numbers_and_text_with_colons_are_read() -> None:
    text = "[0, 0.5, -1, 1_000, 0x10, '010', 08, 'a:1', 1.0e-5]"
    assert parse_yaml_mapping(f"a: {text}", "recipe")["a"] == [0, 0.5, -1, 1000, 16, "010", "08", "a:1", 1e-5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("- 1\n- 2", "is a list; expected a YAML mapping"),
        ("just words", "is a single value"),
        ("a: 1\nb: 2\na: 3", "duplicate key 'a' (lines 1 and 3)"),
        ("x:\n  - y: 1\n    y: 2", "duplicate key 'x[0].y'"),
        ("a: [1, 2", "is not valid YAML: line "),
        ("a: &x [*x]", "contains itself"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        (BILLION, "expands to more than"),
        ("1: 2", "key 1 is of type int; expected a string"),
        ("when: 2001-13-45", "cannot build"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x00", "is not valid YAML"),
    ],
)
def test_invalid_yaml_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml_mapping(text, "my.yml")
    message = str(caught.value)
    assert message.startswith("my.yml: ")
    assert says in message
    assert "\n" not in message


def test_a_message_does_not_quote_the_text() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml_mapping("storage_options: {secret: hunter2hunter2\nmodels: [", "recipe")
    assert "hunter2" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!#|>'\"\n ,?%@\t0.")), max_size=60))
def test_only_eigenmerge_errors_are_raised(text: str) -> None:
    try:
        assert isinstance(parse_yaml_mapping(text, "recipe"), dict)
    except RecipeError as error:
        assert "\n" not in str(error)
