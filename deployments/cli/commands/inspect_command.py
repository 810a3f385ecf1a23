"""`eigenmerge inspect`: print the content of a checkpoint or adapter, from its headers."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ....core.errors import CheckpointError
from ....core.formats.file_names import MANIFEST_NAME
from ..merge_facts import look_at_merge, merge_lines, rank_lines
from ..options import JsonOption, RecipeForStoreOption, StoreOption, check_places, show_bytes
from ..status import set_status
from ..table import table_lines, terminal_width, wrapped_lines
from ..terminal import show, show_json

if TYPE_CHECKING:
    from ....core.listing import ModelListing

_ADAPTER_FACTS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")


def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Directory, file or URI, or BASE+ADAPTER.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors as well.")] = False,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Of a merge: list the rank of each layer, of how many, and why.")
    ] = False,
    store: StoreOption = None,
    recipe: RecipeForStoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show size, dtypes, architecture and fingerprint of CHECKPOINT; of a merge also base, experts, method and time.

    Reads headers, and what the fingerprint needs: models of at most 1 GiB, samples of larger ones.
    """
    from ....core.storage.checkpoints.list_model import list_model

    set_status("reading headers")
    options = _storage_options(recipe)
    check_places(options, CHECKPOINT=checkpoint)
    listing = list_model(checkpoint, options)
    merge = look_at_merge(listing, store, recipe, options)
    if ranks and merge is None:
        raise CheckpointError(
            f"{checkpoint}: has no {MANIFEST_NAME}; --ranks needs a checkpoint that Eigenmerge merged"
        )
    stored = dict(listing.tensors) | (dict(listing.adapter.tensors) if listing.adapter else {})
    facts = _describe_model(listing)
    if as_json:
        rows = {name: {"dtype": source.dtype, "shape": source.shape} for name, source in stored.items()}
        extra: dict[str, Any] = {"merge": merge.facts() if merge is not None else None}
        extra |= {"tensors": rows} if tensors else {}
        extra |= {"ranks": [row.as_dict() for row in merge.ranks()]} if merge is not None and ranks else {}
        show_json(facts | extra)
        return
    width = terminal_width()
    show(*wrapped_lines(_fact_lines(facts), width, indent=14))
    if merge is not None:
        show(*wrapped_lines(merge_lines(merge), width, indent=14))
    if merge is not None and ranks:
        show(*rank_lines(merge, width))
    if tensors:
        rows = [(source.dtype, "x".join(map(str, source.shape)), name) for name, source in sorted(stored.items())]
        show(*table_lines(("dtype", "shape", "tensor"), rows))


def _storage_options(recipe: str | None) -> dict[str, Any] | None:
    if recipe is None:
        return None
    from ....core.steps.read_recipe import read_recipe

    return read_recipe(recipe).storage_options


def _describe_model(listing: ModelListing) -> dict[str, Any]:
    """Return what `--json` prints, without the tensors."""
    stored = dict(listing.tensors) | (dict(listing.adapter.tensors) if listing.adapter else {})
    found = (listing.config or {}).get("architectures")
    architectures = cast("list[object]", found) if isinstance(found, list) else []
    facts: dict[str, Any] = {
        "model": listing.name,
        "uri": listing.uri,
        "kind": listing.kind,
        "num_tensors": len(stored),
        "num_parameters": sum(math.prod(source.shape) for source in stored.values()),
        "num_bytes": listing.num_bytes + (listing.adapter.num_bytes if listing.adapter else 0),
        "dtypes": dict(Counter(source.dtype for source in stored.values()).most_common()),
        "architecture": ", ".join(map(str, architectures)) or None,
        "fingerprint": listing.fingerprint,
        "side_files": sorted(listing.side_files),
    }
    if listing.adapter is not None:
        facts["adapter"] = {key: listing.adapter.config.get(key) for key in _ADAPTER_FACTS}
    return facts


def _fact_lines(facts: dict[str, Any]) -> list[str]:
    dtypes = [f"{dtype} ({count})" for dtype, count in facts["dtypes"].items()]
    adapter = [f"{key} {value}" for key, value in facts.get("adapter", {}).items() if value is not None]
    shown = {
        "model": facts["model"],
        "location": facts["uri"],
        "kind": facts["kind"],
        "tensors": f"{facts['num_tensors']:,}",
        "parameters": f"{facts['num_parameters']:,}",
        "size": show_bytes(facts["num_bytes"]),
        "dtypes": ", ".join(dtypes),
        "architecture": facts["architecture"],
        "fingerprint": facts["fingerprint"],
        "other files": ", ".join(facts["side_files"]),
        "adapter": ", ".join(adapter),
    }
    return [f"{label:13} {value}" for label, value in shown.items() if value]
