"""Weights stored (in, out): the merge is the transpose of the merge of the transposed weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
H = 6
# The layers of GPT-2, and names under which the same matrices are stored (out, in).
SHAPES = {"attn.c_attn": (3 * H, H), "attn.c_proj": (H, H), "mlp.c_fc": (4 * H, H), "mlp.c_proj": (H, 4 * H)}
AS_LINEAR = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
GPT2 = {"model_type": "gpt2", "n_embd": H}


def random(seed: int, *shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(seed: int = 0) -> Tensors:
    """(out, in) matrices of a base, or of an expert of it."""
    base = {name: random(number, *shape) for number, (name, shape) in enumerate(SHAPES.items())}
    return {
        name: value + random(100 * seed + i, *value.shape, size=0.1 * bool(seed))
        for i, (name, value) in enumerate(base.items())
    }


def conv1d(matrices: Tensors) -> Tensors:
    return {f"transformer.h.0.{name}.weight": value.T.contiguous() for name, value in matrices.items()}


def linear(matrices: Tensors) -> Tensors:
    return {f"transformer.h.0.{AS_LINEAR[name]}.weight": value for name, value in matrices.items()}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The two runs add the experts in different orders, because their files have different fingerprints."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def save_lora(folder: Path, seed: int, layers: tuple[str, ...], names: Mapping[str, str], fan_in_fan_out: bool) -> Path:
    """Save an adapter. PEFT stores its factors for (out, in), whichever way the weight is stored."""
    folder.mkdir()
    tensors: Tensors = {}
    for number, layer in enumerate(layers):
        rows, columns = SHAPES[layer]
        module = f"base_model.model.transformer.h.0.{names[layer]}"
        tensors[f"{module}.lora_A.weight"] = random(seed + number, 2, columns)
        tensors[f"{module}.lora_B.weight"] = random(seed + 50 + number, rows, 2)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": fan_in_fan_out}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def both(tmp_path: Path, pipeline: Any, save_model: Callable[..., Path], load_checkpoint: Any) -> Callable[..., Any]:
    """Merge models in both orientations; return the merged (out, in) matrices of each, and the first one's manifest."""

    def run_one(
        form: str, make: Any, names: Mapping[str, str], config: Any, adapters: Any, recipe: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        folder = tmp_path / f"{form}{len(list(tmp_path.iterdir()))}"
        base = save_model(folder / "base", make(weights()), config)
        if adapters is None:
            models = [save_model(folder / f"e{seed}", make(weights(seed)), config) for seed in (1, 2)]
        else:
            layers, option = adapters
            option = option and form == "conv1d"
            models = [save_lora(folder / f"a{seed}", seed, layers, names, option) for seed in (1, 2)]
        recipe = {"base_model": str(base), "models": [str(one) for one in models], **recipe}
        pipeline(recipe, folder / "out", store=str(folder / "store"))
        merged = load_checkpoint(folder / "out")
        manifest = json.loads((folder / "out" / "eigenmerge_manifest.json").read_text())
        rows = {row["name"]: row for row in manifest["tensors"]}
        stored = {name: f"transformer.h.0.{names[name]}.weight" for name in SHAPES}
        found = {name: merged[stored[name]].T if form == "conv1d" else merged[stored[name]] for name in SHAPES}
        return found, {name: rows[stored[name]] for name in SHAPES}

    def run(method: str = "swudi_a", config: Any = GPT2, adapters: Any = None, **keys: Any) -> Any:
        recipe = {"merge_method": method, **keys}
        found, rows = run_one("conv1d", conv1d, {name: name for name in SHAPES}, config, adapters, recipe)
        expected, _ = run_one("linear", linear, AS_LINEAR, {"model_type": "x"}, adapters, recipe)
        return found, expected, rows

    return run


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("swudi_a", {}),
        ("swudi", {"qkv": "split", "keep_sums": True}),
        ("iso_cts", {"calibration": {"svc": {"alpha": 0.5}}}),
        ("swudi", {"parameters": {"alignment_rho": 1.0}, "arithmetic": "float64"}),
    ],
)
def test_full_models(both: Any, method: str, keys: dict[str, Any]) -> None:
    found, expected, rows = both(method, **keys)
    for name, value in expected.items():
        close(found[name], value)
        assert not torch.allclose(value, weights()[name], atol=1e-2)
        assert rows[name]["orientation"] == "in_out"


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_adapters(both: Any, fan_in_fan_out: bool) -> None:
    """PEFT's option may be that of another layer, and a square weight does not show its orientation."""
    found, expected, _ = both(adapters=(tuple(SHAPES), fan_in_fan_out))
    for name, value in expected.items():
        close(found[name], value)
    found, expected, _ = both(adapters=(("attn.c_proj",), fan_in_fan_out))
    close(found["attn.c_proj"], expected["attn.c_proj"])


def test_factors_show_the_orientation_of_an_unknown_architecture(
    tmp_path: Path, pipeline: Any, save_model: Any, load_checkpoint: Any
) -> None:
    shape = (8, 5)
    value, names = random(1, *shape), ("blocks.0.w_in.weight", "blocks.1.w_in.weight")
    base = save_model(tmp_path / "base", {name: value.T for name in names}, {"model_type": "x"})
    rows: dict[str, Any] = {}
    for seed in (1, 2):
        factors = {}
        for name in names[: 3 - seed]:
            module = "base_model.model." + name.removesuffix(".weight")
            factors |= {f"{module}.lora_A.weight": random(seed, 2, 5), f"{module}.lora_B.weight": random(seed, 8, 2)}
        (tmp_path / f"a{seed}").mkdir()
        save_file(factors, tmp_path / f"a{seed}" / "adapter_model.safetensors")
        (tmp_path / f"a{seed}" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    models = [str(tmp_path / "a1"), str(tmp_path / "a2")]
    pipeline({"merge_method": "swudi_a", "base_model": str(base), "models": models}, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "eigenmerge_manifest.json").read_text())
    rows = {row["name"]: row for row in manifest["tensors"]}
    assert [rows[name]["orientation"] for name in names] == ["in_out", "in_out"]


def test_a_rule_overrides_the_architecture(both: Any) -> None:
    rules = [{"match": "*", "orientation": "out_in"}]
    found, expected, rows = both(rules=rules)
    assert {row["orientation"] for row in rows.values()} == {"out_in"}
    assert not torch.allclose(found["mlp.c_fc"], expected["mlp.c_fc"], atol=1e-3)
    rules = [{"match": "*", "orientation": "in_out"}]
    found, _, rows = both(config={"model_type": "nanogpt"}, rules=rules)
    assert {row["orientation"] for row in rows.values()} == {"in_out"}
    close(found["mlp.c_fc"], expected["mlp.c_fc"])


def test_elementwise_methods_do_not_depend_on_it(both: Any) -> None:
    found, expected, rows = both("ties", parameters={"density": 0.5})
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
    assert all("orientation" not in row for row in rows.values())
