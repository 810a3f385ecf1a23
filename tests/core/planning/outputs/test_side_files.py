"""The small files of the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError, RecipeError
from eigenmerge.core.planning.outputs.side_files import plan_side_files, side_contents_needed
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
    text = SWUDI + "models: [a]\ndtype: float32\nchat_template: chatml"
    known = {"/models/base/tokenizer_config.json": b"{}"}
    plan = plan_of(text, base, model("a", {"w.weight": (4, 4)}), side_file_contents=known)
    files = {side.name: side for side in plan.side_files}
    assert set(files) == {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert json.loads(files["config.json"].content) == {"model_type": "llama", "torch_dtype": "float32"}
    assert files["tokenizer.json"].source_uri == "/models/base/tokenizer.json"
    text = SWUDI + "models: [a]\nchat_template: alpacca"
    assert "chat_template: 'alpacca'" in refused(
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


@pytest.mark.parametrize("name", ["../x", "/x", "a//b.json", "a/.b", ".hidden", "x\ny", "a..b", ""])
def test_unsafe_file_names_are_refused(model: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match="is refused; rename the file"):
        plan_side_files(recipe_from_mapping(LINEAR), model("a", {}, side_files=(name,)), {})


def test_a_chat_template_replaces_the_models_one(model: Any) -> None:
    reference = model("a", {}, side_files=("chat_template.json", "chat_template.jinja"))
    (file,) = plan_side_files(recipe_from_mapping(LINEAR), reference, {}, chat_template="{{ messages }}")
    assert (file.name, file.content) == ("chat_template.jinja", b"{{ messages }}")


def test_everything_but_the_tokenizer_is_the_bases(model: Any) -> None:
    of_model = ["generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "modules.json"]
    of_model += ["1_Pooling/config.json", "modeling_x.py", "processor_config.json", "configuration.json"]
    of_tokenizer = ["tokenizer.json", "tokenizer_config.json", "spiece.model", "tekken.json", "emoji.json", "dict.txt"]
    of_tokenizer += ["chat_template.jinja", "additional_chat_templates/tool.jinja", "tokenization_x.py", "source.spm"]
    names = tuple(of_model + of_tokenizer)
    base, other = (
        replace(model(name, {}, side_files=names), tokenizer_code=frozenset({"tokenization_x.py"}))
        for name in ("base", "other")
    )
    files = plan_side_files(recipe_from_mapping(LINEAR), base, {}, tokenizer=other)
    assert {file.name: (file.source_uri or "").split("/")[2] for file in files} == {
        **dict.fromkeys(of_model, "base"),
        **dict.fromkeys(of_tokenizer, "other"),
    }


def test_code_of_one_name_in_two_models_is_refused(model: Any) -> None:
    base = model("base", {}, side_files=("x.py",))
    other = replace(model("other", {}, side_files=("x.py",)), tokenizer_code=frozenset({"x.py"}))
    with pytest.raises(CheckpointError, match=r"x.py: the tokenizer of other and the model base both have code"):
        plan_side_files(recipe_from_mapping(LINEAR), base, {}, tokenizer=other)


OLD = "OLD {{ messages }}"


@pytest.mark.parametrize("old", [OLD, [{"name": "default", "template": OLD}, {"name": "tool", "template": OLD}], None])
def test_the_recipes_chat_template_is_the_only_one(model: Any, old: object) -> None:
    new = "NEW {{ messages }}"
    contents = {
        "tokenizer_config.json": {"a": 1, "chat_template": old},
        "processor_config.json": {"chat_template": OLD},
    }
    names = (*contents, "chat_template.json", "chat_template.jinja", "additional_chat_templates/tool.jinja")
    reference = model("base", {}, side_files=names)
    recipe = recipe_from_mapping({**LINEAR, "chat_template": new})
    needed = side_contents_needed(recipe, reference, None)
    read = {reference.side_files[name]: json.dumps(content).encode() for name, content in contents.items()}
    assert set(needed) == set(read)
    files = {file.name: file for file in plan_side_files(recipe, reference, {}, contents=read, chat_template=new)}
    assert set(files) == {"tokenizer_config.json", "processor_config.json", "chat_template.jinja"}
    assert json.loads(files["tokenizer_config.json"].content or b"") == {"a": 1, "chat_template": new}
    assert json.loads(files["processor_config.json"].content or b"") == {}
    assert (files["chat_template.jinja"].content or b"").decode() == new


def test_token_ids_follow_the_tokenizers_rows(model: Any, plan_of: Any) -> None:
    def tokenizer(tokens: str) -> bytes:
        return json.dumps({"model": {"vocab": {token: row for row, token in enumerate(tokens)}}}).encode()

    config = {"vocab_size": 4, "eos_token_id": [3, 1], "pad_token_id": 0, "text_config": {"image_token_id": 2}}
    generation = {
        "bos_token_id": 1,
        "eos_token_id": 3,
        "suppress_tokens": [2, 1],
        "temperature": 0.5,
        "pad_token_id": 0,
    }
    sides = ("tokenizer.json", "generation_config.json")
    shapes = {"model.embed_tokens.weight": (4, 4), "layers.0.w.weight": (4, 4)}
    base = model("base", shapes, config=config, side_files=sides)
    other = model("other", shapes, config={"vocab_size": 4, "pad_token_id": 3}, side_files=sides)
    known = {
        "/models/base/tokenizer.json": tokenizer("pabe"),
        "/models/other/tokenizer.json": tokenizer("ebax"),
        "/models/base/generation_config.json": json.dumps(generation).encode(),
        "/models/other/generation_config.json": b"{}",
    }
    text = "merge_method: linear\nbase_model: base\nmodels: [base, other]\ntokenizer_source: other"
    plan = plan_of(text, base, base, other, tokenizer=other, side_file_contents=known)
    files = {side.name: json.loads(side.content) for side in plan.side_files if side.content}
    expected = {"eos_token_id": [0, 2], "pad_token_id": 3, "text_config": {"image_token_id": 1}}
    assert files["config.json"] == {"vocab_size": 4, **expected}
    moved = {"bos_token_id": 2, "eos_token_id": 0, "suppress_tokens": [1, 2], "temperature": 0.5}
    assert files["generation_config.json"] == moved
    assert any("generation_config.json: pad_token_id is removed" in warning for warning in plan.warnings)
