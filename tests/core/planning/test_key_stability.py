"""Keys of built-in methods are frozen: a store that an earlier version wrote is reused, not computed again.

A key may change only together with the numbers it stands for (`algorithm_version`, `PART_VERSION`); update its line
here in the same commit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from eigenmerge.core.formats.digest import hash_json
from eigenmerge.core.listing import ModelListing
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.planning.plan import MatrixView, Plan, TensorPlan, spectrum_keys

NEEDED = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.1}}
KEYS: dict[str, str] = {
    "ace": "2e1930c38d9f7e66",
    "arcee_fusion": "994c41eb662d97ec",
    "average": "00edb532cb366081",
    "breadcrumbs": "1757f5ed25ffaf33",
    "breadcrumbs_ties": "f3be1cf9d141bdc9",
    "cart": "587d0f3e53cd376f",
    "core_space": "5be004f7fa6cb0c9",
    "dare_linear": "8d17e66620840638",
    "dare_ties": "45d6e10b82e5ebb1",
    "dc_merge": "fabc6f6623380ddd",
    "della": "9b6c086c1da31b65",
    "della_linear": "b7dfe7c084c7cf53",
    "iso_c": "b92614d0af345626",
    "iso_cts": "e71d5428f6908869",
    "karcher": "06bf7ad2b7891203",
    "knots": "1f3324776b9eea40",
    "linear": "168b81181d7954ca",
    "model_stock": "45787a3f291de360",
    "multislerp": "d438de9a87393a45",
    "nearswap": "c564bd83e24eaa0b",
    "nuslerp": "05b75cac688dd902",
    "optmerge": "a613f0f90c8be2f9",
    "passthrough": "b680925fcddcfa5b",
    "ram": "4165bee0914e6dc8",
    "ramplus_tl": "92718f764b6e7842",
    "sce": "821f1a7fca2985c9",
    "slerp": "210f017faa8be56a",
    "star": "78aef325834f88f7",
    "subspace_boosting": "f078f47e465a9160",
    "swudi": "3abaade4db647045",
    "swudi_a": "49b669ab2f0f5232",
    "swudi_soft": "afd0a3fd8db46540",
    "task_arithmetic": "f0c6b05e99da62d8",
    "ties": "0cb7ef068098c8e1",
    "tsv_m": "490e7935c18fbb3c",
    "wudi": "f4b9699d8951c915",
    "wudi_pinv": "b5fdec6822c7a814",
}


@pytest.mark.parametrize("method", sorted(built_in_methods()))
def test_keys_of_built_in_methods_are_frozen(method: str, model: Any, llama_tensors: Any, plan_of: Any) -> None:
    chosen = built_in_methods()[method]
    experts = [f"e{index}" for index in range(chosen.other_experts or chosen.max_experts or 3)]
    needed = json.dumps(NEEDED.get(method, {}))
    text = f"merge_method: {method}\nbase_model: base\nmodels: [{', '.join(experts)}]\nparameters: {needed}"
    plan = plan_of(text, *(model(name, llama_tensors()) for name in ("base", *experts)))
    keys = [[shard.part_key, [spectrum_keys(tensor) for tensor in shard.tensors]] for shard in plan.shards]
    assert hash_json([plan.run_key, keys])[:16] == KEYS[method]


@dataclass(frozen=True)
class FrozenKeys:
    """The keys of one plan, each list hashed: run key, part keys, spectrum keys (views included), other keys."""

    run: str
    parts: str
    spectra: str
    others: str  # of sums, calibrations and alignments


def frozen_keys(plan: Plan) -> FrozenKeys:
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors]
    matrices: list[TensorPlan | MatrixView] = [matrix for tensor in tensors for matrix in (tensor, *tensor.views)]
    others = [[matrix.sums_key, matrix.calibration_key] for matrix in matrices]
    return FrozenKeys(
        plan.run_key[:16],
        hash_json([shard.part_key for shard in plan.shards])[:16],
        hash_json([spectrum_keys(tensor) for tensor in tensors])[:16],
        hash_json([others, [tensor.alignment_key for tensor in tensors]])[:16],
    )


def make_models(form: str, model: Any, adapter: Any, llama_tensors: Any) -> list[ModelListing]:
    """base, a and b in one of the forms that keys depend on."""
    names = ("base", "a", "b")
    at = "layers.0"
    if form == "llama":
        return [model(name, llama_tensors(), config={"vocab_size": 32, "num_hidden_layers": 2}) for name in names]
    if form == "lora":
        factors = {f"base_model.model.{at}.w.lora_A.weight": (2, 6), f"base_model.model.{at}.w.lora_B.weight": (8, 2)}
        base = model("base", {f"{at}.w.weight": (8, 6), f"{at}.norm.weight": (6,)})
        return [base, *(adapter(name, factors) for name in names[1:])]
    if form == "mixture":
        tensors = {
            f"{at}.mlp.experts.gate_up_proj": (3, 4, 5),
            f"{at}.attn.qkv.weight": (12, 4),
            f"{at}.conv.weight": (3, 2, 2, 2),
            f"{at}.steps": (1,),
        }
        return [model(name, tensors, dtype={f"{at}.steps": "I64", f"{at}.attn.qkv.weight": "BF16"}) for name in names]
    assert form == "vocabularies"
    rows = {"base": 2, "a": 3, "b": 4}
    return [model(name, {"embed_tokens.weight": (rows[name], 4), "w.weight": (4, 4)}) for name in names]


def tokenizer(*tokens: str) -> bytes:
    vocab = {token: row for row, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []}).encode()


TOKENIZERS = {
    "/models/base/tokenizer.json": tokenizer("x", "y"),
    "/models/a/tokenizer.json": tokenizer("x", "y", "z"),
    "/models/b/tokenizer.json": tokenizer("y", "x", "u", "z"),
}
PLANS: dict[str, tuple[str, str, FrozenKeys]] = {
    "swudi_a": (
        "llama",
        "merge_method: swudi_a",
        FrozenKeys("df7a66ed68a466c7", "24561212fb321699", "a769d68f03e0c464", "a438d70c4a7d436b"),
    ),
    "ties": (
        "llama",
        "merge_method: ties\nparameters: {density: 0.5, weight: [0, 1]}",
        FrozenKeys("b4edf5f78d57cba8", "f8fa53c190a49b06", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "average": (
        "llama",
        "merge_method: average\nparameters: {scale: 0.5}",
        FrozenKeys("4e613ff49d61c5bb", "01e48baa1fcb2291", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "calibration": (
        "llama",
        "merge_method: swudi\ncalibration: {svc: {alpha: 1}}",
        FrozenKeys("74aa1da7190e4e44", "5f26b42c182fb391", "a769d68f03e0c464", "87020314a6c359e4"),
    ),
    "kept sums": (
        "llama",
        "merge_method: swudi\nkeep_sums: true",
        FrozenKeys("84a5bc65d3d31cc2", "4ebb43aabb6ad2a4", "e4768024c5724bd6", "b57447d8ed0d5500"),
    ),
    "alignment": (
        "llama",
        "merge_method: swudi\nparameters: {alignment_rho: 1}\ncalibration: {svc: }",
        FrozenKeys("72ce0e6259d81eda", "9239f3734282504b", "a769d68f03e0c464", "c0fdd562b047004f"),
    ),
    "rules": (
        "llama",
        "merge_method: tsv_m\nembeddings: merge\nvectors: base\nrules:\n"
        "  - {match: 're:layers.0.mlp', method: ties, parameters: {density: 0.2}}\n"
        "  - {match: '*.q_proj.weight', action: mean}\n  - {match: '*.k_proj.weight', action: keep_base}",
        FrozenKeys("81500bea3a039a7d", "e49329d1331ba4c5", "f0fff0c74c10b973", "a438d70c4a7d436b"),
    ),
    "slices": (
        "llama",
        "merge_method: linear\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2], parameters: {weight: 3}}]\n"
        "  - sources: [{model: b, layer_range: [1, 2]}, {model: a, layer_range: [0, 1]}]",
        FrozenKeys("0e82d726644de457", "4122635a3a0c7ea5", "96bb5fe26d6e7f3a", "709682b2cb914096"),
    ),
    "bfloat16, seed": (
        "llama",
        "merge_method: dare_ties\ndtype: bfloat16\nseed: 7",
        FrozenKeys("ef81a6f466932a6f", "d412ca5c1b9adbd1", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "LoRA": (
        "lora",
        "merge_method: swudi",
        FrozenKeys("191b163dc0c1f742", "fc312e0dc4aef410", "784d8e859a1967c0", "cc7b6fd7f8207928"),
    ),
    "LoRA, task_arithmetic": (
        "lora",
        "merge_method: task_arithmetic",
        FrozenKeys("f8d1d15c46a72896", "a74ed4f58f0e649b", "643d5437104296e2", "cc7b6fd7f8207928"),
    ),
    "adapter output": (
        "lora",
        "merge_method: swudi\noutput: {format: adapter, rank: 3}",
        FrozenKeys("49ce426cd8b6753c", "120c56bd55ca7855", "2e1bce28ddab6b53", "65e0bf31d7a820be"),
    ),
    "mixture, qkv, convolution": (
        "mixture",
        "merge_method: swudi\nqkv: split\nconv: matrix",
        FrozenKeys("e6e762a191021de8", "e6e7ed9f5af4a08d", "779cdd378c84ce68", "68e23d9a8278b21e"),
    ),
    "mixture, kept sums": (
        "mixture",
        "merge_method: swudi\nkeep_sums: true\narithmetic: float64",
        FrozenKeys("b33fc5302b05de98", "d3a411404079af03", "4f43e95751e4e19c", "4680337173082668"),
    ),
    "union": (
        "vocabularies",
        "merge_method: swudi\ntokenizer_source: union",
        FrozenKeys("de0276ed4e09e28e", "967eaa1fe3e1db40", "40541a6d715327d9", "cc7b6fd7f8207928"),
    ),
    "base vocabulary": (
        "vocabularies",
        "merge_method: ties\ntokenizer_source: base",
        FrozenKeys("09cddc7630e64875", "eb36d2f7ddab6172", "643d5437104296e2", "cc7b6fd7f8207928"),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_keys_of_plans_are_frozen(name: str, model: Any, adapter: Any, llama_tensors: Any, plan_of: Any) -> None:
    form, recipe, expected = PLANS[name]
    models = make_models(form, model, adapter, llama_tensors)
    experts = "" if "slices:" in recipe else "models: [a, b]\n"
    plan = plan_of(f"base_model: base\n{experts}{recipe}", *models, side_file_contents=TOKENIZERS)
    assert frozen_keys(plan) == expected
