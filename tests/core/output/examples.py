"""A plan of a few tensors, and the checkpoint that it describes, for the tests of the output."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from eigenmerge.core.cache.reports import ShardReport, TensorReport
from eigenmerge.core.formats.file_names import MANIFEST_NAME
from eigenmerge.core.output.commit import write_index
from eigenmerge.core.output.file_hashes import file_header
from eigenmerge.core.output.manifest import ManifestWriter
from eigenmerge.core.planning.plan import (
    AdapterFactors,
    ExpertTensor,
    LayerShard,
    MatrixView,
    ModelSummary,
    OutputFile,
    Plan,
    RunSettings,
    TensorPlan,
)
from eigenmerge.core.planning.shards import output_entries, output_header, written_bytes
from eigenmerge.core.storage.store import Store

RUN_KEY, OTHER_KEY = "0123abcd" * 8, "76543210" * 8
FACTORS = AdapterFactors(2, "base_model.model.w.lora_A.weight", "base_model.model.w.lora_B.weight")


def weight(name: str, method: str | None = "swudi", weights: Sequence[float] = (1.0, 1.0), **keys: Any) -> TensorPlan:
    """A matrix that a spectral method merges."""
    experts = tuple(ExpertTensor(i, None, parameters={"weight": one}) for i, one in enumerate(weights))
    facts = {"method": method, "spectrum_key": f"spectra/{name}.arrow", "experts": experts} | keys
    return TensorPlan(name, (4, 3), "F32", "merge", "2-D weight", None, **facts)


def norm(name: str, **keys: Any) -> TensorPlan:
    """A vector that takes the mean delta."""
    return TensorPlan(name, (3,), "F32", "mean", "1-D: mean delta", None, **keys)


def buffer(name: str) -> TensorPlan:
    return TensorPlan(name, (2,), "I64", "copy", "integers", None)


def fused(name: str, views: int = 3) -> TensorPlan:
    """A fused QKV weight, split into its matrices."""
    parts = tuple(MatrixView(label, i, i + 1, f"spectra/{label}.arrow") for i, label in enumerate("qkv"[:views]))
    return weight(name, views=parts, spectrum_key=None)


def adapter(name: str) -> TensorPlan:
    """A matrix that is stored as the factors of an adapter."""
    return weight(name, adapter=FACTORS)


def small_plan(*files: Sequence[Sequence[TensorPlan]], base: bool = True, **keys: Any) -> Plan:
    """A plan of files, each of which consists of shards of tensors; two files by default."""
    files = files or (((weight("a.weight"), norm("a.bias")), (weight("b.weight"),)), ((norm("z"),),))
    shards: list[LayerShard] = []
    outputs: list[OutputFile] = []
    for number, groups in enumerate(files, 1):
        first = len(shards)
        for tensors in groups:
            index = len(shards)
            shards.append(LayerShard(index, tuple(tensors), f"parts/{index}.safetensors", 0, 0, 0.0, 0))
        tensors = [tensor for group in groups for tensor in group]
        header = output_header(entry for tensor in tensors for entry in output_entries(tensor))
        size = len(header) + sum(map(written_bytes, tensors))
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        outputs.append(OutputFile(name, tuple(range(first, len(shards))), size))
    shards = [replace(one, bytes_written=sum(map(written_bytes, one.tensors))) for one in shards]
    facts = {
        "run_key": RUN_KEY,
        "recipe": {"merge_method": "swudi", "base_model": "org/base", "models": ["org/a", "org/b"]},
        "settings": RunSettings(),
        "experts": (model("org/a"), model("org/b")),
        "side_files": (),
    }
    return Plan(base=model("org/base") if base else None, shards=tuple(shards), files=tuple(outputs), **facts | keys)


def model(name: str, uri: str | None = None) -> ModelSummary:
    return ModelSummary(name, uri or f"/models/{name}", f"fingerprint of {name}", 4, 1000, "full")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Checkpoint:
    """The files that a plan describes, with the parts they consist of, of random bytes.

    parts : whole part objects, one per shard
    """

    plan: Plan
    files: dict[str, bytes]
    parts: list[bytes]
    reports: list[ShardReport]

    def write(self, store: Store, *, with_file_hashes: bool = True, side_files: dict[str, bytes] | None = None) -> None:
        """Write weight files, side files, manifest and index."""
        sides = side_files or {}
        hashes: dict[str, str | None] = {
            name: sha256(data) if with_file_hashes else None for name, data in self.files.items()
        }
        hashes |= {name: sha256(data) for name, data in sides.items()}
        for name, data in {**self.files, **sides}.items():
            store.write(name, data)
        store.write(MANIFEST_NAME, ManifestWriter(self.plan, self.reports).encode(hashes))
        write_index(store, self.plan)


def make_checkpoint(plan: Plan) -> Checkpoint:
    generator = random.Random(0)
    parts: list[bytes] = []
    reports: list[ShardReport] = []
    for shard in plan.shards:
        header = output_header(entry for tensor in shard.tensors for entry in output_entries(tensor))
        tensors = [generator.randbytes(written_bytes(tensor)) for tensor in shard.tensors]
        parts.append(header + b"".join(tensors))
        reports.append(
            ShardReport(
                index=shard.index,
                part_key=shard.part_key,
                num_bytes=len(parts[-1]),
                header_bytes=len(header),
                sha256=sha256(parts[-1]),
                etag="",
                seconds=1.0,
                bytes_read=0,
                tensors=tuple(map(report, shard.tensors, tensors)),
            )
        )
    files: dict[str, bytes] = {}
    for file in plan.files:
        data = [parts[index][reports[index].header_bytes :] for index in file.shards]
        files[file.name] = file_header(plan, file) + b"".join(data)
    return Checkpoint(plan, files, parts, reports)


def report(tensor: TensorPlan, data: bytes = b"", **keys: Any) -> TensorReport:
    """The report on one tensor of these bytes; `keys` replace its fields."""
    facts: dict[str, Any] = {}
    if tensor.spectrum_key is not None or tensor.views:
        facts = {"rank": 2, "energy": 0.75, "spectrum": "computed", "spectrum_key": tensor.spectrum_key}
    if tensor.adapter is not None:
        facts["truncation_error"] = 0.25
    found = TensorReport(tensor.name, tensor.action, tensor.method, 0.5, sha256(data), **facts)
    return replace(found, **keys)
