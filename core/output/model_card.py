"""Build README.md of the merged checkpoint, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from ..cache.reports import ShardReport, TensorReport
from ..cache.result import EXACT_BELOW
from ..escaping import markdown_block, markdown_code, markdown_name, markdown_text
from ..formats.file_names import MANIFEST_NAME
from ..planning.plan import Plan
from .card_metadata import Results, card_metadata, license_lines
from .input_cards import InputCard

#: The data set of results that a sweep has measured, and chosen its best candidate by.
SWEEP_DATA = "sweep"


def build_model_card(
    plan: Plan,
    reports: Sequence[ShardReport],
    cards: Sequence[InputCard] = (),
    results: Results | None = None,
) -> bytes:
    """Return the model card: metadata, method, experts and their weights, kept ranks, the recipe.

    Parameters
    ----------
    cards : of the base and the experts, from `read_input_cards`; without them the metadata names no base model
    results : of the merged model, where they were measured
    """
    models = [model.name for model in ((plan.base,) if plan.base else ()) + plan.experts]
    method = str(plan.recipe.get("merge_method"))
    is_adapter = any(tensor.adapter is not None for shard in plan.shards for tensor in shard.tensors)
    metadata = card_metadata(cards, method, is_adapter=is_adapter, results=results)
    tensors = [tensor for report in reports for tensor in report.tensors]
    actions = Counter(tensor.action if tensor.method is None else tensor.method for tensor in tensors)
    lines = [
        "---",
        metadata,
        "---",
        "",
        f"# Merged model ({markdown_text(method)})",
        "",
        f"{len(plan.experts)} experts of {markdown_code(plan.base.name if plan.base else models[0])} merged with"
        " [Eigenmerge](https://pypi.org/project/eigenmerge/), method"
        f" {markdown_code(method)}, arithmetic in {plan.settings.arithmetic}.",
        "",
        "| expert | weight |",
        "|---|---|",
        *(f"| {markdown_name(expert.name)} | {_weight(plan, index)} |" for index, expert in enumerate(plan.experts)),
        "",
        "What happened to the tensors: "
        + ", ".join(f"{count} {markdown_text(name)}" for name, count in actions.most_common())
        + ".",
        "",
        *(markdown_text(line) for line in license_lines(cards)),
        *_rank_lines(reports),
        *_truncation_lines(reports),
        *_result_lines(results or {}),
        f"Checksums, fingerprints and the rank of every layer: `{MANIFEST_NAME}`.",
        "",
        "## Recipe",
        "",
        *markdown_block(yaml.safe_dump(dict(plan.recipe), sort_keys=False).strip(), "yaml"),
        "",
    ]
    lines += [line for warning in plan.warnings for line in (f"> {markdown_text(warning)}", "")]
    return "\n".join(lines).encode()


def _result_lines(results: Results) -> list[str]:
    rows = [
        f"| {markdown_name(data_set)} | {markdown_text(metric)} | {value:.6g} |"
        for data_set, values in results.items()
        for metric, value in values.items()
    ]
    if not rows:
        return []
    lines = ["| data | metric | value |", "|---|---|--:|", *rows, ""]
    if SWEEP_DATA in results:
        note = f"{SWEEP_DATA}: the items that the parameters were chosen with; on other items results are often worse."
        lines += [markdown_text(note), ""]
    return lines


def _weight(plan: Plan, expert: int) -> str:
    """Return an expert's weight, or its range where it differs between layers."""
    weights: set[Any] = {
        entry.parameters["weight"]
        for shard in plan.shards
        for tensor in shard.tensors
        for entry in tensor.experts
        if entry.expert == expert and "weight" in entry.parameters
    }
    if not weights:
        return "1"
    low, high = min(weights), max(weights)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _rank_lines(reports: Sequence[ShardReport]) -> list[str]:
    tensors = [tensor for report in reports for tensor in report.tensors]
    lines = _sentence_on_ranks("", [(tensor.rank, tensor.energy) for tensor in tensors])
    return (
        lines
        + _sentence_on_ranks(
            " over outputs, of layers that are decomposed over both sides",
            [(tensor.outputs_rank, tensor.outputs_energy) for tensor in tensors],
        )
        + _noise_lines(tensors)
    )


def _noise_lines(tensors: Sequence[TensorReport]) -> list[str]:
    noise = [tensor.storage_noise for tensor in tensors if tensor.storage_noise is not None]
    if not noise:
        return []
    text = "Level of the rounding of the experts' storage, relative to each layer's largest singular value:"
    return [f"{text} {min(noise):.1g} to {max(noise):.1g}.", ""]


def _sentence_on_ranks(which: str, found: Sequence[tuple[int | None, float | None]]) -> list[str]:
    kept = sorted(rank for rank, _ in found if rank is not None)
    if not kept:
        return []
    energies = [energy for _, energy in found if energy is not None]
    text = f"Directions kept per layer{which}: {kept[0]} to {kept[-1]}, median {kept[len(kept) // 2]}"
    if energies:
        low, high = f"{100 * min(energies):.1f}%", f"{100 * max(energies):.1f}%"
        text += f"; they hold {low if low == high else f'{low} to {high}'} of each layer's eigenvalue sum"
    return [text + ".", ""]


def _truncation_lines(reports: Sequence[ShardReport]) -> list[str]:
    """Return a paragraph on the error of an adapter's rank; nothing for full checkpoints."""
    errors = [tensor.truncation_error for report in reports for tensor in report.tensors]
    known = [error for error in errors if error is not None]
    if not known:
        return []
    errors = [tensor.error for report in reports for tensor in report.tensors if tensor.error is not None]
    text = "An adapter whose rank holds the merged deltas exactly."
    if max(known) >= EXACT_BELOW:
        text = f"The adapter's rank leaves out at most {max(known):.2%} of a weight's merged delta (Frobenius norm)."
    if max(errors, default=0.0) >= EXACT_BELOW:
        text += f" As stored, with the rounding of its factors, it differs by at most {max(errors):.2%} of one."
    return [text, ""]
