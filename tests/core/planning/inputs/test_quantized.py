"""Quantized checkpoints: float8 with exact scales is read, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError

SWUDI = "merge_method: swudi\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_quantized_weights(model: Any, plan_of: Any) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    models = [model("base", {"w.weight": (4, 4)}, config=config), model("a", {"w.weight": (4, 4)})]
    assert "quantized (gptq)" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))
    models = [model("base", {"w.weight": (4, 4)}), model("a", {"w.weight": (4, 4)}, dtype="U8")]
    assert "stores it as U8" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))
