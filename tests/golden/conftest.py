"""The `golden` fixture: inputs and outputs of the published codes, from this folder and from the full set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
FULL = HERE.parents[2] / "shared" / "golden"


class GoldenData:
    """Seeded task vectors and the results of the published codes for them."""

    def __init__(self, folder: Path, outputs: str, outputs_float32: str | None) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._inputs = load_file(folder / "inputs.safetensors")
        self._outputs = load_file(folder / outputs)
        self._outputs_float32 = load_file(folder / outputs_float32) if outputs_float32 else {}
        self.is_full = folder == FULL

    @cached_property
    def layers(self) -> list[str]:
        """Names of the 2-D layers."""
        return sorted(self.manifest["layers"])

    def experts(self, layer: str, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        """The task vectors of one layer (also of bias_k4, conv_k4, lm_head.weight_k4, pos_embed_k4)."""
        found = []
        while (key := f"{layer}/expert{len(found)}") in self._inputs:
            found.append(self._inputs[key].to(dtype))
        assert found, f"no golden layer {layer}"
        return found

    def result(self, layer: str, setting: str) -> torch.Tensor:
        """The published code's output: float64, or float32 where it runs in nothing else."""
        key = f"{layer}/{setting}"
        return self._outputs[key] if key in self._outputs else self._outputs_float32[key]

    def has(self, layer: str, setting: str) -> bool:
        key = f"{layer}/{setting}"
        return key in self._outputs or key in self._outputs_float32

    def portable(self, setting: str) -> Iterator[str]:
        """Layers whose result of that setting is unique and finite, and is among the stored ones."""
        for layer in self.layers:
            facts = self.manifest["layers"][layer]["results"].get(setting, {})
            if facts.get("portable") and self.has(layer, setting) and self.result(layer, setting).isfinite().all():
                yield layer

    def rank(self, layer: str, rule: str) -> int | None:
        """K of a rank rule in float64; None for the all-zero layer."""
        return self.manifest["rank_rules"][layer][rule]["K_fp64"]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ||found - expected|| / ||expected||, or / 1 where the expectation is 0."""
    scale = expected.double().norm().item() or 1.0
    return (found.double() - expected.double()).norm().item() / scale


@pytest.fixture(scope="session", params=["kept", "full"])
def golden(request: pytest.FixtureRequest) -> GoldenData:
    if request.param == "kept":
        return GoldenData(HERE, "outputs.safetensors", None)
    if not (FULL / "manifest.json").exists():
        pytest.skip("the full golden set is missing (../shared/golden beside the checkout)")
    return GoldenData(FULL, "out_fp64.safetensors", "out_fp32.safetensors")


@pytest.fixture(scope="session", name="relative_error")
def _relative_error() -> object:
    return relative_error
