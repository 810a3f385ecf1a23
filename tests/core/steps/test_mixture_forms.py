"""One mixture in several forms: stacked or one tensor for each expert, as (out, in) or (in, out), under any name.

The same weights have to give the same merge, whichever form the base has and whichever the experts have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Expert = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # gate, up, down

E, INNER, HIDDEN = 4, 6, 10
LAYER = "model.layers.0"
Q = f"{LAYER}.self_attn.q_proj.weight"


def random(seed: int, *shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Weights:
    """The weights of one model, independent of the form in which they are stored."""

    experts: list[Expert]
    router: torch.Tensor
    query: torch.Tensor

    @classmethod
    def base(cls) -> Weights:
        shapes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
        experts = [tuple(random(10 * i + j, *shape) for j, shape in enumerate(shapes)) for i in range(E)]
        return cls(experts, random(98, E, HIDDEN), random(99, HIDDEN, HIDDEN))  # pyright: ignore[reportArgumentType]

    def tuned(self, seed: int) -> Weights:
        def moved(tensor: torch.Tensor, number: int) -> torch.Tensor:
            return tensor + random(1000 * seed + number, *tensor.shape, size=0.1)

        experts = [tuple(moved(part, 3 * i + j) for j, part in enumerate(one)) for i, one in enumerate(self.experts)]
        return Weights(experts, moved(self.router, 98), moved(self.query, 99))  # pyright: ignore[reportArgumentType]


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def split(weights: Weights, module: str = "mlp", names: tuple[str, ...] = PROJECTIONS) -> Tensors:
    experts = {
        f"{LAYER}.{module}.experts.{i}.{name}.weight": part
        for i, one in enumerate(weights.experts)
        for name, part in zip(names, one, strict=True)
    }
    return {**experts, f"{LAYER}.{module}.gate.weight": weights.router, Q: weights.query}


def mixtral(weights: Weights) -> Tensors:
    return split(weights, "block_sparse_moe", ("w1", "w3", "w2"))


def stacked(weights: Weights) -> Tensors:
    """Transformers 5."""
    return {
        f"{LAYER}.mlp.experts.gate_up_proj": torch.stack([torch.cat([gate, up]) for gate, up, _ in weights.experts]),
        f"{LAYER}.mlp.experts.down_proj": torch.stack([down for _, _, down in weights.experts]),
        f"{LAYER}.mlp.gate.weight": weights.router,
        Q: weights.query,
    }


def in_out(weights: Weights) -> Tensors:
    """Llama 4, and Qwen3-VL-MoE on the Hub: (experts, in, out)."""
    return {
        name: value.transpose(1, 2).contiguous() if value.ndim == 3 else value
        for name, value in stacked(weights).items()
    }


def interleaved(weights: Weights) -> Tensors:
    """GPT-OSS: (experts, in, out), gate and up in turn."""
    gate_up = torch.stack([torch.stack([gate, up], 1).flatten(0, 1).T for gate, up, _ in weights.experts])
    return {**in_out(weights), f"{LAYER}.mlp.experts.gate_up_proj": gate_up}


def granite(weights: Weights) -> Tensors:
    found = stacked(weights)
    return {
        f"{LAYER}.block_sparse_moe.input_linear.weight": found[f"{LAYER}.mlp.experts.gate_up_proj"],
        f"{LAYER}.block_sparse_moe.output_linear.weight": found[f"{LAYER}.mlp.experts.down_proj"],
        f"{LAYER}.block_sparse_moe.router.layer.weight": weights.router,
        Q: weights.query,
    }


def step(weights: Weights, module: str = "moe") -> Tensors:
    """Step: three stacks. MLX has them too, in `mlp.switch_mlp`, with the router in `mlp`."""
    stacks = [torch.stack(parts) for parts in zip(*weights.experts, strict=True)]
    names = [f"{LAYER}.{module}.{name}_proj.weight" for name in ("gate", "up", "down")]
    router = f"{LAYER}.{module.partition('.')[0]}.gate.weight"
    return {**dict(zip(names, stacks, strict=True)), router: weights.router, Q: weights.query}


def mlx(weights: Weights) -> Tensors:
    return step(weights, "mlp.switch_mlp")


def dbrx(weights: Weights) -> Tensors:
    """Rows of all experts one after the other; the last projection is stored (in, out)."""
    gate, up, down = (list(parts) for parts in zip(*weights.experts, strict=True))
    module = f"{LAYER}.ffn"
    return {
        f"{module}.experts.mlp.w1": torch.cat(gate),
        f"{module}.experts.mlp.v1": torch.cat(up),
        f"{module}.experts.mlp.w2": torch.cat([part.T for part in down]),
        f"{module}.router.layer.weight": weights.router,
        Q: weights.query,
    }


FORMS: Mapping[str, tuple[Callable[[Weights], Tensors], str]] = {
    "split": (split, "qwen3_moe"),
    "mixtral": (mixtral, "mixtral"),
    "stacked": (stacked, "qwen3_moe"),
    "in_out": (in_out, "llama4"),
    "interleaved": (interleaved, "gpt_oss"),
    "granite": (granite, "granitemoe"),
    "step": (step, "step3p5"),
    "mlx": (mlx, "qwen3_moe"),
    "dbrx": (dbrx, "dbrx"),
}


@pytest.fixture
def merge(
    tmp_path: Path, pipeline: Any, save_model: Callable[..., Path], load_checkpoint: Any
) -> Callable[..., Tensors]:
    """Save a base and its experts in the given forms, merge them, and return the result."""

    def run(base: str, *experts: str, method: str = "swudi_a", family: str | None = None, **keys: Any) -> Tensors:
        weights = Weights.base()
        number = len(list(tmp_path.iterdir()))
        config = {"model_type": family or FORMS[base][1], "num_experts": E, "hidden_size": HIDDEN}
        places = [save_model(tmp_path / f"base{number}", FORMS[base][0](weights), config)]
        for seed, form in enumerate(experts, 1):
            config = {"model_type": family or FORMS[form][1], "num_experts": E, "hidden_size": HIDDEN}
            tensors = FORMS[form][0](weights.tuned(seed))
            places.append(save_model(tmp_path / f"expert{number}-{seed}", tensors, config))
        recipe = {"merge_method": method, "base_model": str(places[0]), "models": [str(p) for p in places[1:]], **keys}
        recipe["allow_mixed_architectures"] = True  # the families stand for their forms here
        pipeline(recipe, tmp_path / f"out{number}")
        return load_checkpoint(tmp_path / f"out{number}")

    return run


def merged_weights(method: str, router: str = "base") -> Weights:
    """The merge of two experts by hand: gate, up and down of each expert are matrices of their own."""
    base = Weights.base()
    experts = [base.tuned(1), base.tuned(2)]

    def merged(one: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
        return one + merge_task_vectors([other - one for other in others], method=method)

    parts = [
        tuple(merged(one[j], [expert.experts[i][j] for expert in experts]) for j in range(3))
        for i, one in enumerate(base.experts)
    ]
    mixed = base.router if router == "base" else merged(base.router, [expert.router for expert in experts])
    return Weights(parts, mixed, merged(base.query, [expert.query for expert in experts]))  # pyright: ignore[reportArgumentType]


def close(found: Tensors, expected: Tensors, name: str) -> None:
    torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_merge_of_single_experts(merge: Any, form: str) -> None:
    found, expected = merge(form, form, form), FORMS[form][0](merged_weights("swudi_a"))
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


PAIRS = [
    ("split", "stacked"),
    ("stacked", "split"),
    ("split", "in_out"),
    ("in_out", "split"),
    ("interleaved", "stacked"),
    ("stacked", "interleaved"),
    ("mixtral", "stacked"),
    ("granite", "split"),
    ("step", "stacked"),
    ("stacked", "mlx"),
    ("dbrx", "split"),
    ("stacked", "dbrx"),
]


@pytest.mark.parametrize(("base", "expert"), PAIRS)
def test_experts_in_another_form_give_the_merge_in_the_bases_form(merge: Any, base: str, expert: str) -> None:
    """Bit for bit: an elementwise method sees the same numbers in the same places."""
    same, mixed = (merge(base, base, form, method="task_arithmetic") for form in (base, expert))
    assert set(same) == set(mixed)
    for name, value in same.items():
        assert torch.equal(mixed[name], value), name


@pytest.mark.parametrize(("base", "expert"), [("split", "stacked"), ("stacked", "split"), ("in_out", "mixtral")])
def test_spectral_merges_agree_too(merge: Any, base: str, expert: str) -> None:
    found, expected = merge(base, expert, expert), FORMS[base][0](merged_weights("swudi_a"))
    for name in expected:
        close(found, expected, name)


def test_the_router_is_merged_by_elementwise_methods_and_by_a_rule(merge: Any) -> None:
    name = f"{LAYER}.mlp.gate.weight"
    assert torch.equal(merge("split", "split", "split")[name], Weights.base().router)
    rules = [{"match": "*.mlp.gate.weight", "action": "merge"}]
    expected = merged_weights("swudi_a", router="merged").router
    torch.testing.assert_close(merge("split", "split", "split", rules=rules)[name], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(merge("split", "split", "split", method="linear")[name], Weights.base().router)


def test_an_expert_that_is_missing_is_named(tmp_path: Path, pipeline: Any, save_model: Any) -> None:
    weights = Weights.base()
    incomplete = split(weights.tuned(1))
    del incomplete[f"{LAYER}.mlp.experts.1.up_proj.weight"]
    places = [save_model(tmp_path / "base", stacked(weights)), save_model(tmp_path / "e", incomplete)]
    with pytest.raises(
        CheckpointError, match=r"the up projection of expert 1 in model.layers.0.mlp is missing"
    ) as caught:
        pipeline({"merge_method": "linear", "base_model": str(places[0]), "models": [str(places[1])]}, tmp_path / "out")
    assert "\n" not in str(caught.value)


def adapt(folder: Path, weights: Weights, seed: int) -> Weights:
    """Save LoRA factors for single experts, not for all, and return the weights with them."""
    factors: Tensors = {}
    experts: list[Expert] = []
    for i, one in enumerate(weights.experts):
        parts = list(one)
        for j, (name, part) in enumerate(zip(PROJECTIONS, one, strict=True)):
            if (i, j) not in {(2, 0), (3, 2)}:
                up, down = random(seed * 100 + 3 * i + j, part.shape[0], 2), random(seed * 99 + i, 2, part.shape[1])
                module = f"base_model.model.{LAYER}.mlp.experts.{i}.{name}"
                factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
                parts[j] = part + 0.5 * up @ down
        experts.append((parts[0], parts[1], parts[2]))
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in factors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1}))
    return Weights(experts, weights.router, weights.query)


ADAPTED = [("stacked", "swudi_a"), ("in_out", "swudi_a"), ("interleaved", "swudi_a"), ("granite", "task_arithmetic")]


@pytest.mark.parametrize(
    ("base", "method"), [*ADAPTED, ("mlx", "swudi_a"), ("mixtral", "swudi_a"), ("stacked", "ties")]
)
def test_lora_on_single_experts(
    tmp_path: Path, pipeline: Any, save_model: Any, load_checkpoint: Any, base: str, method: str
) -> None:
    """Whatever form the base has, the result is that of the full models with the same deltas."""
    make, family = FORMS[base]
    weights = Weights.base()
    adapters = [tmp_path / f"adapter{seed}" for seed in (1, 2)]
    tuned = [adapt(folder, weights, seed) for seed, folder in enumerate(adapters, 1)]
    config = {"model_type": family, "num_experts": E, "hidden_size": HIDDEN}
    folder = save_model(tmp_path / "base", make(weights), config)
    full = [save_model(tmp_path / f"full{i}", make(one), config) for i, one in enumerate(tuned)]
    results: list[Tensors] = []
    for number, models in enumerate((adapters, full)):
        recipe = {"merge_method": method, "base_model": str(folder), "models": [str(place) for place in models]}
        recipe |= {"parameters": {"density": 0.5}} if method == "ties" else {}
        pipeline(recipe, tmp_path / f"out{number}")
        results.append(load_checkpoint(tmp_path / f"out{number}"))
    for name in results[1]:
        close(results[0], results[1], name)
    changed = [name for name, value in make(weights).items() if not torch.equal(results[0][name], value)]
    assert len(changed) == len(results[0]) - (2 if base != "mixtral" else 4)  # router and query; not adapted experts
