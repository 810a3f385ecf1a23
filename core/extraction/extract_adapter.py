"""Extract a LoRA adapter from a full fine-tune: the best approximation of each weight's change by a given rank.

    delta = tuned - base = U S V^T;    lora_B = U sqrt(S), lora_A = sqrt(S) V^T, cut to the rank

One layer at a time is in memory; factors go to a temporary file until the sizes of all are known.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import torch

from ..coordination.threads import one_thread
from ..errors import CheckpointError, DestinationError, NonFiniteError, RecipeError
from ..formats.dtypes import safetensors_name
from ..formats.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from ..formats.safetensors_header import build_header
from ..listing import ModelListing
from ..numerics.svd.compact_svd import compact_svd
from ..planning.inputs.layouts.layout import Layout
from ..storage.checkpoints.list_model import list_model
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.store import Store
from ..storage.torch_dtypes import torch_dtype
from .changes import Pair, base_layout, choose_forms, is_left_out, pair_tensors

REPORT_NAME = "extraction.json"

_PREFIX = "base_model.model."
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ExtractedTensor:
    """One changed tensor.

    form : "factors", "whole" (a module that is stored unchanged) or "left out"
    norm : Frobenius norm of the change
    error : of what is stored, relative to the norm
    """

    name: str
    form: str
    rank: int | None
    norm: float
    error: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """The result of `extract_adapter`.

    error : Frobenius norm of all that the adapter lacks, relative to the norm of the whole change
    """

    destination: str
    num_tensors: int
    num_unchanged: int
    tensors: tuple[ExtractedTensor, ...]
    error: float
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)


class _Spool:
    """Tensors in a temporary file, in the order in which they were added."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.entries: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(self, name: str, tensor: torch.Tensor, dtype: str) -> None:
        stored = tensor.to(torch_dtype(dtype)).contiguous()
        self.entries[name] = (dtype, tuple(stored.shape))
        if stored.numel():
            self.file.write(memoryview(stored.reshape(-1).view(torch.uint8).numpy().data))


def extract_adapter(
    base: str,
    tuned: str,
    destination: str,
    *,
    rank: int | None = None,
    max_error: float | None = None,
    dtype: str = "float32",
    leave_out: Sequence[str] = (),
    storage_options: Mapping[str, object] | None = None,
    on_tensor: Callable[[str], None] | None = None,
) -> Extraction:
    """Write a PEFT LoRA adapter that turns `base` approximately into `tuned`.

    Cost: an SVD of every changed matrix; memory: one layer, four times in float64.

    Parameters
    ----------
    base, tuned : references of full models, as in a recipe
    destination : directory or URI of the adapter; must be empty
    rank : largest rank of each layer
    max_error : give each layer the smallest rank whose relative error is below this, at most `rank`
    dtype : of the factors
    leave_out : globs of tensor names whose change is left out of the adapter

    Raises
    ------
    CheckpointError : the models do not fit each other, have equal weights, or differ in what an adapter cannot hold
    DestinationError : the destination is not empty
    RecipeError : neither rank nor max_error, or a value out of range
    """
    if (rank is None and max_error is None) or (rank is not None and rank < 1):
        raise RecipeError("give --rank R (1 or more), or --max-error E, or both")
    if max_error is not None and not 0 < max_error < 1:
        raise RecipeError(f"--max-error is {max_error}; expected a fraction between 0 and 1")
    target = Store(destination, storage_options)
    if any(True for _ in target.list("")):
        raise DestinationError(f"{destination}: is not empty; choose an empty destination")
    listings = [list_model(reference, storage_options) for reference in (base, tuned)]
    layout = base_layout(listings[0])
    pairs = pair_tensors(listings[0], listings[1], layout)
    reader = TensorReader(storage_options)
    with one_thread(), torch.no_grad():
        changed = {pair.name for pair in pairs if _differs(pair, reader)}
        if not changed:
            raise CheckpointError(f"{base} and {tuned} have equal weights; there is nothing to extract")
        kept = {name for name in changed if not is_left_out(name, leave_out)}
        if not kept:
            raise CheckpointError("every changed tensor is left out; there is nothing to extract")
        forms = choose_forms(pairs, kept, layout)
        with tempfile.TemporaryFile() as file:
            spool = _Spool(file)
            done: list[ExtractedTensor] = []
            for pair in pairs:
                if pair.name in changed or pair.name in forms:
                    done.append(_extract(pair, forms.get(pair.name), reader, spool, rank, max_error, dtype, layout))
                    if on_tensor is not None:
                        on_tensor(pair.name)
            content = _adapter_config(listings[0], done, forms, layout)
            squares = sum(item.norm**2 for item in done)
            missing = sum((item.norm * item.error) ** 2 for item in done)
            num_bytes = _write(target, spool)
    result = Extraction(
        destination, len(pairs), len(pairs) - len(changed), tuple(done), math.sqrt(missing / squares), num_bytes
    )
    target.write(REPORT_NAME, _to_json(result.to_dict()))
    target.write(ADAPTER_CONFIG_NAME, _to_json(content))  # last: without it the folder is no adapter
    return result


def _differs(pair: Pair, reader: TensorReader) -> bool:
    return not torch.equal(*_read(pair, reader)) if pair.base.shape != (0,) else False


def _read(pair: Pair, reader: TensorReader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return base and tuned in the wider dtype of the two."""
    base, tuned = reader.read(pair.base), reader.read(pair.tuned)
    dtype = torch.promote_types(base.dtype, tuned.dtype)
    return base.to(dtype), tuned.to(dtype)


def _extract(
    pair: Pair,
    form: str | None,
    reader: TensorReader,
    spool: _Spool,
    rank: int | None,
    max_error: float | None,
    dtype: str,
    layout: Layout,
) -> ExtractedTensor:
    """Write what the adapter holds of one tensor to the spool."""
    base, tuned = _read(pair, reader)
    delta = tuned.double() - base.double()
    norm = float(delta.norm())
    if not math.isfinite(norm):
        raise NonFiniteError(f"{pair.name}: the difference of the two models has NaN or Inf; repair the fine-tune")
    if form is None:
        return ExtractedTensor(pair.name, "left out", None, norm, 1.0)
    if form == "whole":
        spool.add(_PREFIX + pair.name, reader.read(pair.tuned), pair.tuned.dtype)
        return ExtractedTensor(pair.name, "whole", None, norm, 0.0)
    wide = torch.float64 in (base.dtype, tuned.dtype)
    svd = compact_svd(delta if wide else delta.float(), cut=0.0)
    values = svd.values.double()
    count = min(svd.num_directions, rank or svd.num_directions)
    if max_error is not None:
        tails = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)]).sqrt()
        count = min(count, int((tails > max_error * norm).sum()))
    count = max(1, count)
    root = values[:count].sqrt().unsqueeze(1)
    left, right = svd.left[:count] * root, svd.right[:count] * root
    stored = torch_dtype(safetensors_name(dtype))
    left, right = left.to(stored), right.to(stored)
    error = float((delta - left.double().T @ right.double()).norm()) / norm
    if layout.in_out(pair.name):  # delta = (up @ down)^T
        left, right = right, left
    name = safetensors_name(dtype)
    spool.add(f"{_PREFIX}{pair.module}.lora_A.weight", right, name)
    spool.add(f"{_PREFIX}{pair.module}.lora_B.weight", left.T, name)
    return ExtractedTensor(pair.name, "factors", count, norm, error)


def _adapter_config(
    base: ModelListing, done: Sequence[ExtractedTensor], forms: Mapping[str, str], layout: Layout
) -> dict[str, Any]:
    """Return adapter_config.json, with lora_alpha = r for every module: the factors include the scaling."""
    ranks = {item.name.removesuffix(".weight"): item.rank for item in done if item.rank is not None}
    saved = sorted({name.rpartition(".")[0] for name, form in forms.items() if form == "whole"})
    rank = max(ranks.values(), default=1)
    pattern = {"^" + name.replace(".", r"\."): own for name, own in ranks.items() if own != rank}
    transposed = any(layout.in_out(f"{name}.weight") for name in ranks)
    if not ranks:
        raise CheckpointError(f"no matrix of {base.name} is changed, so there is no LoRA; keep the full model")
    architectures = str((base.config or {}).get("architectures"))
    task = "CAUSAL_LM" if "ForCausalLM" in architectures else None
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "modules_to_save": saved or None,
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _write(target: Store, spool: _Spool) -> int:
    """Write the weights from the spool; return the bytes of the file."""
    header = build_header(spool.entries, {"format": "pt"})
    num_bytes = len(header)
    spool.file.seek(0)
    with target.open_write(ADAPTER_WEIGHTS_NAME) as writer:
        writer.write(header)
        while chunk := spool.file.read(_CHUNK_BYTES):
            writer.write(chunk)
            num_bytes += len(chunk)
    return num_bytes


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
