"""A merged checkpoint has the files of its base: module folders, code, named chat templates; and one chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.steps.verification.verify_checkpoint import verify_checkpoint
from eigenmerge.core.storage.store import Store

Q = "model.layers.0.self_attn.q_proj.weight"
CONFIG = {"model_type": "x", "num_hidden_layers": 1, "auto_map": {"AutoModel": "modeling_x.X"}}


@pytest.fixture
def places(tmp_path: Path, save_model: Callable[..., Path]) -> list[Path]:
    folders = [
        save_model(tmp_path / name, {Q: value * torch.eye(8)}, CONFIG) for name, value in (("b", 0.0), ("e", 1.0))
    ]
    files = {
        "modules.json": [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "tokenizer_config.json": {"chat_template": "OLD {{ messages }}", "tokenizer_class": "PreTrainedTokenizerFast"},
        "additional_chat_templates/rag.jinja": "RAG",
        "modeling_x.py": "raise SystemExit",
    }
    for name, content in files.items():
        path = folders[0] / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folders


def recipe(places: list[Path], **keys: Any) -> dict[str, Any]:
    return {"merge_method": "average", "base_model": str(places[0]), "models": [str(places[1])], **keys}


def test_the_bases_files_are_copied(places: list[Path], tmp_path: Path, pipeline: Callable[..., Any]) -> None:
    result = pipeline(recipe(places), tmp_path / "out")
    for name in ("modules.json", "1_Pooling/config.json", "additional_chat_templates/rag.jinja", "modeling_x.py"):
        assert (tmp_path / "out" / name).read_bytes() == (places[0] / name).read_bytes()
    assert any("its code goes with the merged model" in warning for warning in result.warnings)
    assert verify_checkpoint(Store(str(tmp_path / "out"))).problems == []


def test_one_chat_template(places: list[Path], tmp_path: Path, pipeline: Callable[..., Any]) -> None:
    pipeline(recipe(places, chat_template="NEW {{ messages }}"), tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "chat_template.jinja").read_text() == "NEW {{ messages }}"
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config == {"chat_template": "NEW {{ messages }}", "tokenizer_class": "PreTrainedTokenizerFast"}
    assert not (out / "additional_chat_templates").exists()
