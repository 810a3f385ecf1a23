"""Write distributed checkpoints as training with several processes does, with PyTorch's own writer in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

# (name, offsets, sizes) of a part
Part = tuple[str, tuple[int, ...], tuple[int, ...]]


def rows_of(tensors: Mapping[str, torch.Tensor], processes: int) -> list[list[Part]]:
    """Return the parts of each process as FSDP divides: rows, the last processes may have fewer or none.

    Vectors are not divided: the first process has them.
    """
    parts: list[list[Part]] = [[] for _ in range(processes)]
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            parts[0].append((name, (0,) * tensor.ndim, tuple(tensor.shape)))
            continue
        share = -(-tensor.shape[0] // processes)
        for rank in range(processes):
            start, stop = (min(step * share, tensor.shape[0]) for step in (rank, rank + 1))
            offsets = (start, *(0 for _ in tensor.shape[1:]))
            parts[rank].append((name, offsets, (stop - start, *tensor.shape[1:])))
    return parts


def write_distributed(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    parts: Sequence[Sequence[Part]],
    files: dict[str, int] | None = None,
) -> Path:
    """Write a checkpoint with the parts that each process has.

    files : number of the file of each tensor
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    plans = [SavePlan([_item(tensors[part[0]], part) for part in one]) for one in parts]

    class Planner:
        """What the writer asks for data."""

        def resolve_data(self, item: WriteItem) -> torch.Tensor:
            assert item.tensor_data is not None
            chunk = item.tensor_data.chunk
            pairs = zip(chunk.offsets, chunk.sizes, strict=True)
            return tensors[item.index.fqn][tuple(slice(start, start + size) for start, size in pairs)].clone()

    for plan in writer.prepare_global_plan(plans):
        writer.write_data(plan, cast(Any, Planner())).wait()
    return folder


def _item(tensor: torch.Tensor, part: Part) -> WriteItem:
    name, offsets, sizes = part
    chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    data = TensorWriteData(chunk, TensorProperties.create_from_tensor(tensor), tensor.size())
    return WriteItem(MetadataIndex(name, torch.Size(offsets)), WriteItemType.SHARD, tensor_data=data)
