"""Keys of built-in methods are frozen: a store that an earlier version wrote is reused, not computed again.

A key may change only together with the numbers it stands for (`algorithm_version`, `PART_VERSION`); update its line
here in the same commit.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from eigenmerge.core.formats.digest import hash_json
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.planning.plan import spectrum_keys

NEEDED = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.1}}
KEYS: dict[str, str] = {
    "ace": "452bfca8eea78c30",
    "arcee_fusion": "826ed8c355381f14",
    "average": "021689e5c0876076",
    "breadcrumbs": "6318fab47a1eb4a5",
    "breadcrumbs_ties": "aeba015ccdac91f6",
    "cart": "0d5622a97daaee9c",
    "core_space": "4f18e0ed9825084a",
    "dare_linear": "0bdcac409d3e7bf1",
    "dare_ties": "46551760213d15f1",
    "della": "5e0f044d892e85e4",
    "della_linear": "e97a9aa40918d956",
    "iso_c": "ed30ff4fc823b137",
    "iso_cts": "b425885227ef0ff6",
    "karcher": "855455f22bae7d69",
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
    "swudi": "23d08adb64b80f22",
    "swudi_a": "174de5c2d3dcd653",
    "swudi_soft": "341a402f0bb2802e",
    "task_arithmetic": "a8d0d9ea448188ff",
    "ties": "34aa4e11f05979c4",
    "tsv_m": "7f9a18693ceeba7a",
    "wudi": "781ce7b8c18c228e",
    "wudi_pinv": "b61b106d68bd6e3e",
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
