"""What changed from the last published merge, from the two manifests: experts, tensors, ranks, interference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import EigenmergeError
from ...output.read_manifest import Manifest, read_manifest
from ...storage.store import Store
from ..reading.run_records import RunRecords
from ..reporting.report import ExpertReport, make_report

_MOST_NAMED = 10
_MOVED = 0.1  # relative change of an expert's interference that is named


def changes_since(last: str, now: str, storage_options: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return one line for each difference of a merge from the last published one; empty where one has no manifest.

    Reads both manifests, and no weights: tensors are compared by their sha256.

    Parameters
    ----------
    last, now : addresses of the two checkpoints
    """
    try:
        one, other = (read_manifest(Store(place, storage_options)) for place in (last, now))
        reports = [make_report(manifest, RunRecords("")) for manifest in (one, other)]
    except EigenmergeError:  # the comparison is no part of the result
        return ()
    lines = [*_experts(one, other), _tensors(one, other), *_ranks(one, other)]
    return tuple([*lines, *_interference(reports[0].experts, reports[1].experts)])


def _experts(one: Manifest, other: Manifest) -> list[str]:
    before, after = ({model.name: model.fingerprint for model in manifest.experts} for manifest in (one, other))
    groups = {
        "new": [name for name in after if name not in before],
        "no longer merged": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and before[name] != after[name]],
    }
    return [f"experts {what}: {_some(names)}" for what, names in groups.items() if names]


def _tensors(one: Manifest, other: Manifest) -> str:
    before = {tensor.name: tensor.sha256 for tensor in one.tensors}
    differ = [tensor.name for tensor in other.tensors if before.get(tensor.name) != tensor.sha256]
    return f"{len(differ)} of {len(other.tensors)} tensors differ"


def _ranks(one: Manifest, other: Manifest) -> list[str]:
    before = {tensor.name: tensor.rank for tensor in one.tensors}
    pairs = [(before.get(tensor.name), tensor.rank) for tensor in other.tensors]
    known = [(old, new) for old, new in pairs if old is not None and new is not None]
    changed = [(old, new) for old, new in known if old != new]
    if not changed:
        return []
    old, new = (sum(column) for column in zip(*known, strict=True))
    return [f"the rank of {len(changed)} tensors changed; directions kept: {old:,} before, {new:,} now"]


def _interference(before: Sequence[ExpertReport], after: Sequence[ExpertReport]) -> list[str]:
    old = {expert.name: expert.total.interference for expert in before}
    lines: list[str] = []
    for expert in after:
        was, value = old.get(expert.name), expert.total.interference
        if was is not None and value is not None and abs(value - was) > _MOVED * max(was, value):
            lines.append(f"{expert.name}: interference {was:.3g} before, {value:.3g} now")
    more = [f"{len(lines) - _MOST_NAMED} more experts moved"] if len(lines) > _MOST_NAMED else []
    return lines[:_MOST_NAMED] + more


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
