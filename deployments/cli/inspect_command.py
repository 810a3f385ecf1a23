"""`eigenmerge inspect`: print the content of a checkpoint or adapter, from its headers alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Annotated, Any

import typer

from .options import JsonOption, show_bytes


def inspect(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Directory, file or URI, or BASE+ADAPTER.", show_default=False)
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show size, dtypes, architecture and fingerprint of CHECKPOINT. Reads headers only, no weights."""
    from ...core.storage.checkpoints.list_model import list_model

    listing = list_model(checkpoint, None)
    stored = dict(listing.tensors) | (dict(listing.adapter.tensors) if listing.adapter else {})
    facts: dict[str, Any] = {
        "model": listing.name,
        "uri": listing.uri,
        "kind": listing.kind,
        "num_tensors": len(stored),
        "num_parameters": sum(math.prod(source.shape) for source in stored.values()),
        "num_bytes": listing.num_bytes + (listing.adapter.num_bytes if listing.adapter else 0),
        "dtypes": dict(Counter(source.dtype for source in stored.values()).most_common()),
        "architecture": ", ".join((listing.config or {}).get("architectures") or []) or None,  # pyright: ignore[reportArgumentType, reportCallIssue]
        "fingerprint": listing.fingerprint,
        "side_files": sorted(listing.side_files),
    }
    if listing.adapter is not None:
        config = listing.adapter.config
        facts["adapter"] = {key: config.get(key) for key in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")}
    if as_json:
        rows = {name: {"dtype": source.dtype, "shape": source.shape} for name, source in stored.items()}
        print(json.dumps(facts | ({"tensors": rows} if tensors else {}), indent=1))
        return
    facts["num_bytes"] = show_bytes(facts["num_bytes"])
    facts["num_parameters"] = f"{facts['num_parameters']:,}"
    for key, value in facts.items():
        if value not in (None, [], {}):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{key.replace('_', ' '):16} {', '.join(shown) if isinstance(shown, list) else shown}")
    if tensors:
        for name, source in sorted(stored.items()):
            print(f"{source.dtype:8} {'x'.join(map(str, source.shape)):>16}  {name}")
