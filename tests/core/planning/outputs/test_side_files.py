"""The small files of the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError

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
