"""The report on a merge in Python: text, warnings, and an HTML page that a notebook shows."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..core.steps.reporting.page import report_page
from ..core.steps.reporting.report import LayerReport, Report
from ..core.steps.reporting.warn import report_warnings
from .cli.html_file import write_html

_FRAME = "width:100%;height:46rem;border:1px solid #8884;border-radius:6px"


@dataclass(frozen=True)
class MergeReport:
    """A report; printed, it is text of at most 100 columns.

    data : experts, layers and their numbers
    """

    data: Report

    @property
    def warnings(self) -> list[str]:
        """What a reader should know, the most important first."""
        return report_warnings(self.data)

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """All tensors that a method merged."""
        return self.data.layers

    @property
    def html(self) -> str:
        """The page: one file that needs no network."""
        return report_page(self.data)

    def write(self, path: str | Path) -> Path:
        """Write the page to a file, and return its path."""
        place = Path(path)
        write_html(place, self.html)
        return place

    def __str__(self) -> str:
        from .cli.report_lines import report_lines

        return "\n".join(report_lines(self.data, 100))

    def __repr__(self) -> str:
        return f"MergeReport({self.data.title!r}, {len(self.data.layers)} layers, {len(self.warnings)} warnings)"

    def _repr_html_(self) -> str:
        """Return a frame with the page, so that its style does not change the notebook."""
        return f'<iframe srcdoc="{escape(self.html)}" style="{_FRAME}"></iframe>'
