"""Propose a recipe for given models: look at them, choose base, tokenizer and memory, and write it with comments."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from ..coordination.worker_count import choose_worker_count
from ..errors import CheckpointError, RecipeError
from ..listing import ModelListing
from ..numerics.registry import get_method
from ..planning.plan import Plan
from ..storage.checkpoints.list_model import list_model
from .make_plan import make_plan
from .read_recipe import read_recipe

DEFAULT_METHOD = "swudi_a"
_MEMORY_SHARE = 0.8  # of the available memory, for all workers together


@dataclass(frozen=True, slots=True)
class Proposal:
    """A recipe that can be merged.

    text : YAML with comments
    plan : of the recipe
    base_origin : where the base comes from, "" where it was given
    """

    text: str
    plan: Plan
    base_origin: str


def named_base(listings: Iterable[ModelListing]) -> tuple[str | None, str]:
    """Return the model that all experts name as their base, and where they do; None where they do not agree.

    Adapters name it in adapter_config.json, full models in `_name_or_path` of config.json.
    """
    names: list[str | None] = []
    origins: Counter[str] = Counter()
    for listing in listings:
        adapter = listing.adapter.config.get("base_model_name_or_path") if listing.adapter is not None else None
        named = adapter or (listing.config or {}).get("_name_or_path")
        usable = isinstance(named, str) and named.strip() and named != listing.name
        names.append(str(named) if usable else None)
        origins["adapter_config.json" if adapter else "config.json"] += 1
    first = names[0] if names else None
    if first is None or any(name != first for name in names):
        return None, ""
    return first, " and ".join(origins)


def propose_recipe(
    models: Sequence[str], *, base: str | None = None, method: str | None = None, memory: int | None = None
) -> Proposal:
    """Return a recipe that merges the models, after planning it.

    Parameters
    ----------
    models : at least two references, as in a recipe; `base` among them is no expert
    base : reference of the base; None: the one that all adapters name in adapter_config.json
    method : None: `DEFAULT_METHOD`
    memory : bytes that are available on this machine; None sets no limit

    Raises
    ------
    RecipeError : fewer than two experts, or no base is given or named; the message says what the models name
    EigenmergeError : as `make_plan`
    """
    experts = [model for model in dict.fromkeys(models) if model != base]
    if len(experts) < 2:
        found = f"found {', '.join(experts)}" if experts else "found none"
        raise RecipeError(f"a merge needs at least two models beside the base; {found}")
    name = get_method(method or DEFAULT_METHOD).name
    listings = [list_model(model) for model in experts]
    origin = ""
    if base is None:
        base, origin = _find_base(listings)
    keys: dict[str, str] = {}
    try:
        plan = _plan(experts, base, name, keys)
    except CheckpointError as error:  # models with other tokens need a tokenizer for all of them
        keys["tokenizer_source"] = "union"
        try:
            plan = _plan(experts, base, name, keys)
        except (CheckpointError, RecipeError):
            raise error from None
    limit = _memory_limit(plan, memory)
    return Proposal(_text(experts, base, name, keys, listings, plan, origin, limit), plan, origin)


def _find_base(listings: Sequence[ModelListing]) -> tuple[str, str]:
    found, origin = named_base(listings)
    if found is not None and all(listing.kind == "adapter" for listing in listings):
        return found, origin
    hint = f"; {origin} of all models names {found}" if found is not None else ""
    raise RecipeError(f"the base model is missing{hint}; give it with --base")


def _plan(experts: Sequence[str], base: str, method: str, keys: Mapping[str, str]) -> Plan:
    return make_plan(read_recipe({"merge_method": method, "base_model": base, "models": list(experts), **keys}))


def _memory_limit(plan: Plan, available: int | None) -> int | None:
    """Return a limit in bytes where the default number of workers needs more than is available, and one does not."""
    if available is None:
        return None
    limit = int(available * _MEMORY_SHARE)
    workers = choose_worker_count(plan, None, None, "cpu")
    return limit if plan.peak_bytes <= limit < plan.peak_bytes * workers else None


def _text(
    experts: Sequence[str],
    base: str,
    method: str,
    keys: Mapping[str, str],
    listings: Sequence[ModelListing],
    plan: Plan,
    origin: str,
    limit: int | None,
) -> str:
    kinds = Counter("adapter" if listing.adapter is not None else "full model" for listing in listings)
    described = get_method(method)
    counts = ", ".join(f"{count} {kind}" + ("s" if count > 1 else "") for kind, count in kinds.items())
    lines = [
        "# Recipe of Eigenmerge. What it does: eigenmerge plan RECIPE. Merge: eigenmerge merge RECIPE OUT",
        f"merge_method: {method}  # {_one_line(described.summary)}",
        f"base_model: {_scalar(base)}" + (f"  # named by {origin} of the adapters" if origin else ""),
        f"models:  # {counts}",
        *(f"  - model: {_scalar(expert)}" for expert in experts),
        "    # parameters: {weight: 0.5}   # of the expert above; by default all have weight 1",
        "# parameters:                     # of the method; `eigenmerge methods " + method + "` describes them",
        *(f"#   {name}: {_scalar(field.default)}" for name, field in described.Parameters.model_fields.items()),
    ]
    if "tokenizer_source" in keys:
        lines.append(f"tokenizer_source: {keys['tokenizer_source']}  # the models have different tokens")
    else:
        lines.append("# tokenizer_source: union           # where models have tokens that the base lacks")
    dtype = next((tensor.out_dtype for shard in plan.shards for tensor in shard.tensors), None)
    lines.append(f"# dtype: bfloat16                 # of the output; by default that of the base, {dtype}")
    if all(listing.kind == "adapter" for listing in listings):
        lines.append("# output: adapter                 # write a PEFT adapter instead of full weights")
    peak = f"{plan.peak_bytes / 1e9:.2f} GB" if plan.peak_bytes >= 1e8 else f"{max(1, plan.peak_bytes // 10**6)} MB"
    if limit is not None:
        lines.append(f"max_memory: {limit}  # bytes; a worker needs up to {peak}, so fewer run at the same time")
    else:
        lines.append(f"# max_memory: 16GB                # of all workers together; each needs up to {peak}")
    lines.append("# store: s3://bucket/eigenmerge    # keeps spectra and finished parts, so that a killed run resumes")
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    """Return a YAML scalar on one line, quoted where YAML would read another value: null, 1e5, "a: b"."""
    text = yaml.safe_dump(value, width=math.inf, allow_unicode=True).removesuffix("...\n").strip()
    return text if "\n" not in text else json.dumps(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
