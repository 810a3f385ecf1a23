"""The small files of the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError, RecipeError
from eigenmerge.core.planning.outputs.side_files import plan_side_files
from eigenmerge.core.recipe.recipe import recipe_from_mapping

SWUDI = "merge_method: swudi\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_config_and_tokenizer_files(model: Any, plan_of: Any) -> None:
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}
    sides = ("tokenizer.json", "tokenizer_config.json", "README.md")
    base = model("base", {"w.weight": (4, 4)}, config=config, side_files=sides, dtype="F8_E4M3")
    plan = plan_of(SWUDI + "models: [a]\ndtype: float32\nchat_template: chatml", base, model("a", {"w.weight": (4, 4)}))
    files = {side.name: side for side in plan.side_files}
    assert set(files) == {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert json.loads(files["config.json"].content) == {"model_type": "llama", "torch_dtype": "float32"}
    assert files["tokenizer.json"].source_uri == "/models/base/tokenizer.json"
    text = SWUDI + "models: [a]\nchat_template: alpaca"
    assert "chat_template: 'alpaca'" in refused(
        RecipeError, lambda: plan_of(text, base, model("a", {"w.weight": (4, 4)}))
    )


LINEAR = {"merge_method": "linear", "models": ["a"]}


def test_files_of_the_tokenizer_model_and_config_of_the_reference(model: Any) -> None:
    reference = model("base", {}, config={"model_type": "x", "dtype": "float32"}, side_files=("tokenizer.json",))
    other = model("b", {}, side_files=("vocab.json", "merges.txt", "special_tokens_map.json"))
    recipe = recipe_from_mapping({**LINEAR, "out_dtype": "bfloat16"})
    files = plan_side_files(recipe, reference, {"vocab_size": 7}, tokenizer=other, tokenizer_json=b"{}")
    found = {file.name: file for file in files}
    assert list(found) == ["config.json", "special_tokens_map.json", "tokenizer.json"]  # sorted, without vocab.json
    assert json.loads(found["config.json"].content or b"") == {"model_type": "x", "dtype": "bfloat16", "vocab_size": 7}
    assert found["tokenizer.json"].content == b"{}"
    assert found["special_tokens_map.json"].source_uri == other.side_files["special_tokens_map.json"]


@pytest.mark.parametrize("name", ["../x", "a/b.json", ".hidden", "x\ny", "a..b", ""])
def test_unsafe_file_names_are_refused(model: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match="is refused; rename the file"):
        plan_side_files(recipe_from_mapping(LINEAR), model("a", {}, side_files=(name,)), {})


def test_a_chat_template_replaces_the_models_one(model: Any) -> None:
    recipe = recipe_from_mapping({**LINEAR, "chat_template": "{{ messages }}"})
    reference = model("a", {}, side_files=("chat_template.json", "chat_template.jinja"))
    (file,) = plan_side_files(recipe, reference, {})
    assert (file.name, file.content) == ("chat_template.jinja", b"{{ messages }}")
