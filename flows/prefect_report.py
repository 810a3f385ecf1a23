"""Write what Prefect's pages show of a merge: name, tags, progress, a table of the layers, their spectra, links.

Errors, such as a slow or unreachable server, are logged and never fail a merge.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from ..core.cache.reports import ShardReport
from ..core.cache.result import MergeResult
from ..core.formats.file_names import MANIFEST_NAME, MODEL_CARD_NAME
from ..core.planning.plan import Plan
from ..core.run import Run
from ..core.steps.listener import Listener
from ..core.steps.plot_spectra import plot_spectra

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 1.0
_MOST_ROWS = 2000  # more rows would take megabytes in the server's database


class PrefectReport(Listener):
    """Writes the artifacts of the current flow run."""

    def __init__(self) -> None:
        self._progress: UUID | None = None
        self._run: Run | None = None
        self._done = 0
        self._updated = 0.0
        self._reports: list[ShardReport] = []

    def planned(self, run: Run, workers: int) -> None:
        self._run = run
        self._try(self._name_run, run.plan)
        to_do = f"{len(run.plan.shards)} shards to do"
        self._progress = self._try(create_progress_artifact, 0.0, "shards", to_do)

    def shard_done(self, report: ShardReport) -> None:
        self._reports.append(report)
        self._done += 1
        if self._progress is not None and time.monotonic() - self._updated > _SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            self._show_progress()

    def assembling(self, run: Run) -> None:
        self._show_progress()

    def finished(self, result: MergeResult) -> None:
        self._try(create_table_artifact, self._rows(), "layers", "How each tensor was merged")
        self._try(create_markdown_artifact, _summary(result), "result", "Location of the result")
        image = self._try(plot_spectra, self._run)
        if image is not None:
            self._try(create_image_artifact, image, "spectra", "Eigenvalues of every layer, largest first")

    def _name_run(self, plan: Plan) -> None:
        method = str(plan.recipe.get("merge_method"))
        base = (plan.base or plan.experts[0]).name.rstrip("/").rpartition("/")[2]
        experts = "1 expert" if len(plan.experts) == 1 else f"{len(plan.experts)} experts"
        run_id = flow_run.get_id()
        if run_id is None:
            return
        with get_client(sync_client=True) as client:
            client.update_flow_run(
                UUID(run_id),
                name=f"{method}: {experts} on {base}",
                tags={"eigenmerge", method, f"run:{plan.run_key[:12]}"},
            )

    def _show_progress(self) -> None:
        if self._progress is not None and self._run is not None:
            total = len(self._run.plan.shards)
            text = f"{self._done} of {total} shards"
            self._try(update_progress_artifact, self._progress, 100.0 * self._done / max(1, total), text)

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for report in sorted(self._reports, key=lambda one: one.index):
            for tensor in report.tensors:
                rows.append(
                    {
                        "tensor": tensor.name,
                        "method": tensor.method or tensor.action,
                        "rank": tensor.rank if tensor.rank is not None else "",
                        "energy kept": f"{100 * tensor.energy:.1f}%" if tensor.energy is not None else "",
                        "seconds": round(tensor.seconds, 3),
                        "spectrum": "reused" if report.reused and tensor.spectrum != "none" else tensor.spectrum,
                    }
                )
        return rows[:_MOST_ROWS]

    @staticmethod
    def _try(action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except Exception as error:
            logger.warning("Prefect's page of this run is incomplete: %s", error)
            return None


def _summary(result: MergeResult) -> str:
    place = result.destination.rstrip("/")
    lines = [
        f"**{result.num_experts} experts merged with `{result.method}`** into `{place}`",
        "",
        f"* report: `{place}/{MODEL_CARD_NAME}`, manifest: `{place}/{MANIFEST_NAME}`",
        f"* {result.shards_done} shards computed, {result.shards_reused} found in the store",
        f"* {result.decompositions_computed} decompositions computed, {result.decompositions_reused} reused",
        f"* {result.bytes_read:,} bytes read, {result.bytes_written:,} written, {result.seconds:.1f} s",
    ]
    return "\n".join(lines + [f"* warning: {warning}" for warning in result.warnings])
