"""Write what Prefect's pages show of a merge: name, tags, progress, a table of the layers, the report, links.

A slow or unreachable server never fails a merge, and never delays it by more than one request (`server_health.py`).
"""

from __future__ import annotations

import time
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from ..core.cache.reports import ShardReport
from ..core.cache.result import MergeResult
from ..core.escaping import markdown_code, markdown_text, printable
from ..core.formats.file_names import MANIFEST_NAME, REPORT_NAME
from ..core.planning.plan import Plan
from ..core.run import Run
from ..core.steps.listener import Listener
from .report_artifact import report_link, report_markdown, report_of
from .server_health import ServerHealth

_SECONDS_BETWEEN_UPDATES = 1.0
_MOST_ROWS = 2000  # more rows would take megabytes in the server's database


class PrefectReport(Listener):
    """Writes the artifacts of the current flow run."""

    def __init__(self, server: ServerHealth) -> None:
        self._server = server
        self._progress: UUID | None = None
        self._run: Run | None = None
        self._done = 0
        self._updated = 0.0
        self._reports: list[ShardReport] = []

    def planned(self, run: Run, workers: int) -> None:
        self._run = run
        self._server.report(self._name_run, run.plan)
        self._show_progress()

    def shard_done(self, report: ShardReport) -> None:
        self._reports.append(report)
        self._done += 1
        if time.monotonic() - self._updated > _SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            self._show_progress()

    def assembling(self, run: Run) -> None:
        self._show_progress()

    def finished(self, result: MergeResult) -> None:
        self._server.try_again()
        report = self._server.report
        self._show_progress()
        report(create_table_artifact, self._rows(), "layers", "How each tensor was merged")
        report(create_markdown_artifact, _summary(result), "result", "Location of the result")
        if not self._server.answers or self._run is None:
            return
        found = report_of(self._run, result.destination)
        if found is not None:
            report(create_markdown_artifact, report_markdown(found), "report", "Experts, interference and warnings")
        link = report_link(self._run, result.destination)
        if link is not None:
            report(create_link_artifact, link, REPORT_NAME, "report-page", "Charts of every layer: one page")

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
                name=printable(f"{method}: {experts} on {base}"),
                tags={"eigenmerge", method, f"run:{plan.run_key[:12]}"},
            )

    def _show_progress(self) -> None:
        if self._run is None:
            return
        total = len(self._run.plan.shards)
        share, text = 100.0 * self._done / max(1, total), f"{self._done} of {total} shards"
        if self._progress is None:  # the server did not answer before
            created = self._server.report(create_progress_artifact, share, "shards", text)
            self._progress = cast("UUID | None", created)
        else:
            self._server.report(update_progress_artifact, self._progress, share, text)

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for report in sorted(self._reports, key=lambda one: one.index):
            for tensor in report.tensors:
                rows.append(
                    {
                        "tensor": markdown_text(tensor.name),
                        "method": markdown_text(tensor.method or tensor.action),
                        "rank": _both(tensor.rank, tensor.outputs_rank, "{}"),
                        "energy kept": _both(tensor.energy, tensor.outputs_energy, "{:.1%}"),
                        "storage noise": f"{tensor.storage_noise:.2g}" if tensor.storage_noise is not None else "",
                        "seconds": round(tensor.seconds, 3),
                        "spectrum": "reused" if report.reused and tensor.spectrum != "none" else tensor.spectrum,
                    }
                )
        return rows[:_MOST_ROWS]


def _both(inputs: float | None, outputs: float | None, form: str) -> int | str:
    """Return a number of a decomposition, or of those over inputs and outputs; "" where there is none."""
    if inputs is None:
        return ""
    if outputs is not None:
        return f"{form.format(inputs)} inputs, {form.format(outputs)} outputs"
    return inputs if isinstance(inputs, int) else form.format(inputs)


def _summary(result: MergeResult) -> str:
    place = result.destination.rstrip("/")
    lines = [
        f"**{result.num_experts} experts merged with {markdown_code(result.method)}** into {markdown_code(place)}",
        "",
        f"* report: {markdown_code(f'{place}/{REPORT_NAME}')}, manifest: {markdown_code(f'{place}/{MANIFEST_NAME}')}",
        f"* {result.shards_done} shards computed, {result.shards_reused} found in the store",
        f"* {result.decompositions_computed} decompositions computed, {result.decompositions_reused} reused",
        f"* {result.bytes_read:,} bytes read, {result.bytes_written:,} written, {result.seconds:.1f} s",
    ]
    return "\n".join(lines + [f"* warning: {markdown_text(warning)}" for warning in result.warnings])
