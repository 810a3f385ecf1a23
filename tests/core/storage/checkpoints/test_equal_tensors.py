"""Equal bytes of stored tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.storage.checkpoints.equal_tensors import find_equal_tensors
from eigenmerge.core.storage.checkpoints.list_model import list_model


@pytest.mark.parametrize("samples_only", [False, True])
def test_tensors_are_equal_in_all_bytes(tmp_path: Path, samples_only: bool) -> None:
    weight = torch.randn(512, 128)
    late, between = weight.clone(), weight.clone()
    late[-32, 0] += 1  # in the first row of the last sample
    between[20, 0] += 1  # in no sample
    tensors = {"a": weight, "b": weight.clone(), "c": late, "d": between, "e": late.clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = list_model(str(tmp_path)).tensors
    found = find_equal_tensors(stored, [tuple("abcde")], samples_only=samples_only)
    assert found == {"b": "a", "e": "c"} | ({"d": "a"} if samples_only else {})
