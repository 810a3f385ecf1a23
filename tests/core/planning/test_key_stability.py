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
    "ace": "452bfca8eea78c30",
    "arcee_fusion": "5246c5cbf2bc7364",
    "average": "e207f8475cf88504",
    "breadcrumbs": "6318fab47a1eb4a5",
    "breadcrumbs_ties": "aeba015ccdac91f6",
    "cart": "0d5622a97daaee9c",
    "core_space": "46e581e65f89a2f6",
    "dare_linear": "0bdcac409d3e7bf1",
    "dare_ties": "46551760213d15f1",
    "della": "5e0f044d892e85e4",
    "della_linear": "e97a9aa40918d956",
    "iso_c": "ed30ff4fc823b137",
    "iso_cts": "fccf673e282c73dc",
    "karcher": "bf4dd3a296c5f73f",
    "knots": "397ca613e29a7c0a",
    "linear": "515a114cb645f9dd",
    "model_stock": "682de1cc530092a6",
    "multislerp": "f9a52d4f8ff0acd4",
    "nearswap": "a55c83f8a0ee690e",
    "nuslerp": "52790a5e07d00ab2",
    "optmerge": "38c2873697caaf14",
    "passthrough": "6c87c35ddd17c6db",
    "ram": "70d599335f7539ed",
    "ramplus_tl": "fab146649814b79b",
    "sce": "3466698c929d1338",
    "slerp": "7419853c8a468054",
    "star": "45c740755cfd733c",
    "subspace_boosting": "d2682ca329650805",
    "swudi": "cf65cdc08f979839",
    "swudi_a": "401b47801c0e9b50",
    "swudi_soft": "4cc7191e5b974e41",
    "task_arithmetic": "a8d0d9ea448188ff",
    "ties": "34aa4e11f05979c4",
    "tsv_m": "41fe7f49139c8cc0",
    "wudi": "281edada7c135756",
    "wudi_pinv": "ba9725b8b13be068",
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
        FrozenKeys("7fd71a8f0c23a368", "ad7fe0d8916bff4e", "391d88a669c411ce", "a438d70c4a7d436b"),
    ),
    "ties": (
        "llama",
        "merge_method: ties\nparameters: {density: 0.5, weight: [0, 1]}",
        FrozenKeys("ea6d9056a6aa81ed", "29b48d83318f26ff", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "average": (
        "llama",
        "merge_method: average\nparameters: {scale: 0.5}",
        FrozenKeys("8bd8286a07b4967a", "fa296dded9836c22", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "calibration": (
        "llama",
        "merge_method: swudi\ncalibration: {svc: {alpha: 1}}",
        FrozenKeys("254030ab10c70c24", "1c0c7e094343eacc", "391d88a669c411ce", "be3667698ac1ed34"),
    ),
    "kept sums": (
        "llama",
        "merge_method: swudi\nkeep_sums: true",
        FrozenKeys("e882f9d19a69d809", "788ebd46ac2582e0", "11fbe198ec161099", "df2c8bd0f09930b4"),
    ),
    "alignment": (
        "llama",
        "merge_method: swudi\nparameters: {alignment_rho: 1}\ncalibration: {svc: }",
        FrozenKeys("f7b877b2489bb81a", "a82d1ec4dc5e7404", "391d88a669c411ce", "f41590804c3d24a0"),
    ),
    "rules": (
        "llama",
        "merge_method: tsv_m\nembeddings: merge\nvectors: base\nrules:\n"
        "  - {match: 're:layers.0.mlp', method: ties, parameters: {density: 0.2}}\n"
        "  - {match: '*.q_proj.weight', action: mean}\n  - {match: '*.k_proj.weight', action: keep_base}",
        FrozenKeys("e76335a382dd51d2", "a79127d98d1f6c86", "51bf2190d75be1f8", "a438d70c4a7d436b"),
    ),
    "slices": (
        "llama",
        "merge_method: linear\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2], parameters: {weight: 3}}]\n"
        "  - sources: [{model: b, layer_range: [1, 2]}, {model: a, layer_range: [0, 1]}]",
        FrozenKeys("e8dda7dfcd4996d5", "a1bdb638e26ab343", "96bb5fe26d6e7f3a", "709682b2cb914096"),
    ),
    "bfloat16, seed": (
        "llama",
        "merge_method: dare_ties\ndtype: bfloat16\nseed: 7",
        FrozenKeys("ac793f2d38a4b771", "cb5ed391f9089f75", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "LoRA": (
        "lora",
        "merge_method: swudi",
        FrozenKeys("a61f0d42d2c2b12c", "c253afe71a389055", "a251fdd696d91cd1", "cc7b6fd7f8207928"),
    ),
    "LoRA, task_arithmetic": (
        "lora",
        "merge_method: task_arithmetic",
        FrozenKeys("fc11d1a3a8c83bf1", "d98fdee5558c2a04", "643d5437104296e2", "cc7b6fd7f8207928"),
    ),
    "adapter output": (
        "lora",
        "merge_method: swudi\noutput: {format: adapter, rank: 3}",
        FrozenKeys("0b6cbe288519aac3", "9406ce42ec4d39e4", "faa38b5f92c0ff1e", "65e0bf31d7a820be"),
    ),
    "mixture, qkv, convolution": (
        "mixture",
        "merge_method: swudi\nqkv: split\nconv: matrix",
        FrozenKeys("005c8d8011d89c33", "f9cd3f73aa91d6f2", "a85ea2ce3db1c24f", "68e23d9a8278b21e"),
    ),
    "mixture, kept sums": (
        "mixture",
        "merge_method: swudi\nkeep_sums: true\narithmetic: float64",
        FrozenKeys("a7e76b3b3a908f2c", "3fc30dd7f537b084", "a5207cf357c30ec0", "ce6f4064efd8c21e"),
    ),
    "union": (
        "vocabularies",
        "merge_method: swudi\ntokenizer_source: union",
        FrozenKeys("130b13da45662b7c", "456ba983f38df4fb", "30baa3fa7611678a", "cc7b6fd7f8207928"),
    ),
    "base vocabulary": (
        "vocabularies",
        "merge_method: ties\ntokenizer_source: base",
        FrozenKeys("1fb399d18adafdec", "042d638630a1af56", "643d5437104296e2", "cc7b6fd7f8207928"),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_keys_of_plans_are_frozen(name: str, model: Any, adapter: Any, llama_tensors: Any, plan_of: Any) -> None:
    form, recipe, expected = PLANS[name]
    models = make_models(form, model, adapter, llama_tensors)
    experts = "" if "slices:" in recipe else "models: [a, b]\n"
    plan = plan_of(f"base_model: base\n{experts}{recipe}", *models, side_file_contents=TOKENIZERS)
    assert frozen_keys(plan) == expected
