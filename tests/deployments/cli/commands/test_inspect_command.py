"""`eigenmerge inspect` of a full checkpoint, an adapter, and a wrong path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.deployments.cli.commands.inspect_command import inspect


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "math"
    folder.mkdir()
    tensors = {"layers.0.q.weight": torch.zeros(4, 6, dtype=torch.bfloat16), "norm.weight": torch.zeros(6)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


def test_the_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(checkpoint), tensors=True)
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines[:-3])
    assert facts["tensors"] == "2" and facts["parameters"] == "30" and facts["size"] == "72 B"
    assert facts["dtypes"] in ("BF16 (1), F32 (1)", "F32 (1), BF16 (1)")
    assert facts["architecture"] == "LlamaForCausalLM" and len(facts["fingerprint"]) == 64
    assert lines[-3:] == ["dtype  shape  tensor", "BF16   4x6    layers.0.q.weight", "F32    6      norm.weight"]


def test_the_json(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(checkpoint), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["num_tensors"], found["num_parameters"], found["num_bytes"]) == (2, 30, 72)
    assert "tensors" not in found
    inspect(str(checkpoint), tensors=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["tensors"]["norm.weight"] == {"dtype": "F32", "shape": [6]}


def test_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "base_model.model.layers.0.q.lora_"
    save_file(
        {f"{name}A.weight": torch.zeros(2, 6), f"{name}B.weight": torch.zeros(4, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "base_model_name_or_path": "base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    inspect(str(tmp_path))
    assert "peft_type LORA, r 2, lora_alpha 4" in capsys.readouterr().out


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        inspect(str(tmp_path / "nowhere"))
