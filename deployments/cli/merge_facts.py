"""What `eigenmerge inspect` prints of a checkpoint that is a merge: base, experts, method, time, and ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ...core.formats.file_names import MANIFEST_NAME
from .options import open_store, show_count
from .table import table_lines, wrapped_lines

if TYPE_CHECKING:
    from ...core.listing import ModelListing
    from ...core.output.read_manifest import Manifest
    from ...core.steps.reading.rank_rows import RankRow
    from ...core.steps.reading.run_records import RunRecords

_MOST_EXPERTS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class MergeFacts:
    """A merged checkpoint.

    written : when the manifest was written, by the clock of its storage; "" where that does not tell
    """

    manifest: Manifest
    records: RunRecords
    written: str

    def facts(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        manifest = self.manifest
        return {
            "run_key": manifest.run_key,
            "eigenmerge": manifest.eigenmerge,
            "method": manifest.recipe.get("merge_method"),
            "arithmetic": manifest.arithmetic,
            "base": manifest.base.model_dump(mode="json") if manifest.base else None,
            "experts": [model.model_dump(mode="json") for model in manifest.experts],
            "recipe": manifest.recipe,
            "actions": dict(Counter(tensor.method or tensor.action for tensor in manifest.tensors)),
            "started": self.records.facts.get("started"),
            "finished": self.records.facts.get("finished"),
            "written": self.written or None,
            "warnings": manifest.warnings,
        }

    def ranks(self) -> list[RankRow]:
        """Return the ranks of all layers."""
        from ...core.steps.reading.rank_rows import rank_rows

        return rank_rows(self.manifest, self.records)


def look_at_merge(
    listing: ModelListing, store: str | None, recipe: str | None, options: Mapping[str, Any] | None
) -> MergeFacts | None:
    """Return what is known of a merge, None where a checkpoint has no manifest.

    Raises
    ------
    CheckpointError : the manifest is damaged
    """
    from ...core.output.read_manifest import read_manifest
    from ...core.steps.reading.run_records import read_run_records
    from ...core.storage.store import Store

    place = Store(listing.uri, options)
    if not place.exists(MANIFEST_NAME):
        return None
    manifest = read_manifest(place)
    modified = place.info(MANIFEST_NAME).modified
    written = datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds") if modified else ""
    return MergeFacts(manifest, read_run_records(open_store(store, recipe), manifest.run_key), written)


def merge_lines(merge: MergeFacts) -> list[str]:
    """Return the lines about the merge below those about the checkpoint."""
    facts = merge.facts()
    experts = merge.manifest.experts
    names = [model.name for model in experts[:_MOST_EXPERTS_SHOWN]]
    more = [f"and {len(experts) - len(names)} more; --json lists all"] if len(experts) > len(names) else []
    finished = facts["finished"] or facts["written"]
    shown = {
        "merged by": f"{facts['method']}, Eigenmerge {facts['eigenmerge']}, arithmetic in {facts['arithmetic']}",
        "merged at": str(finished).replace("T", " ").replace("+00:00", " UTC") if finished else "",
        "run": facts["run_key"],
        "base": facts["base"]["name"] if facts["base"] else "none",
        "treatments": ", ".join(f"{count} {name}" for name, count in facts["actions"].items()),
    }
    lines = [f"{label:13} {value}" for label, value in shown.items() if value]
    lines.insert(-1, f"{'experts':13} {show_count(len(experts), 'expert')}")
    lines[-1:-1] = [f"{'':13} {name}" for name in [*names, *more]]
    return lines + [f"{'warning':13} {text}" for text in facts["warnings"]]


def rank_lines(merge: MergeFacts, width: int | None) -> list[str]:
    """Return one table for the layers whose rank was chosen in the same way."""
    rows = merge.ranks()
    if not rows:
        return ["ranks: no tensor was merged by a spectral method"]
    sections: dict[str, list[RankRow]] = {}
    for row in rows:
        sections.setdefault(row.why, []).append(row)
    lines: list[str] = []
    columns = ("rank", "of", "energy", "last kept", "first dropped", "layer")
    for why, members in sections.items():
        lines += ["", *wrapped_lines([f"rank by {why}"], width)]
        lines += table_lines(columns, [_cells(row) for row in members], width)
    note = "last kept, first dropped: eigenvalues or singular values around the cut; the largest is 1"
    if merge.records.missing:
        note = f"eigenvalues: {merge.records.missing}; --store names the store of the merge"
    return lines + wrapped_lines([note], width)


def _cells(row: RankRow) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    return (
        str(row.rank),
        "?" if row.directions is None else str(row.directions),
        "?" if row.energy is None else f"{row.energy:.2%}",
        number(row.last_kept),
        number(row.first_dropped),
        row.name.replace(".weight", ""),
    )
