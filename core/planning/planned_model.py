"""The listing of a checkpoint that a plan will write, so that a merge that uses it can be planned before it exists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..formats.dtypes import tensor_bytes
from ..formats.file_names import CONFIG_NAME
from ..listing import ModelListing, TensorSource
from .plan import Plan


def planned_listing(plan: Plan, name: str, uri: str) -> tuple[ModelListing, Mapping[str, bytes]]:
    """Return the listing of the output, and the content by URI of its files that the merge itself writes.

    Names, shapes, dtypes and config are final; locations and the fingerprint are not, so keys that are made from them
    are not those of the later merge.

    Parameters
    ----------
    plan : of a checkpoint, not of an adapter
    name, uri : of the model, as a recipe has them
    """
    entries = ((tensor.name, tensor.out_dtype, tensor.shape) for shard in plan.shards for tensor in shard.tensors)
    tensors = place_tensors(uri, entries)
    contents = {f"{uri}/{side.name}": side.content for side in plan.side_files if side.content is not None}
    config = contents.pop(f"{uri}/{CONFIG_NAME}", None)
    listing = ModelListing(
        name=name,
        uri=uri,
        kind="full",
        tensors=tensors,
        config=json.loads(config) if config is not None else None,
        side_files={
            side.name: side.source_uri or f"{uri}/{side.name}" for side in plan.side_files if side.name != CONFIG_NAME
        },
        fingerprint=plan.run_key,
        num_bytes=sum(source.num_bytes for source in tensors.values()),
    )
    return listing, contents


def place_tensors(uri: str, entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, TensorSource]:
    """Return the locations of tensors that are stored one after the other.

    Parameters
    ----------
    entries : name, safetensors dtype and shape of each
    """
    found: dict[str, TensorSource] = {}
    position = 0
    for name, dtype, shape in entries:
        size = tensor_bytes(dtype, shape)
        found[name] = TensorSource(uri, position, position + size, dtype, shape)
        position += size
    return found
