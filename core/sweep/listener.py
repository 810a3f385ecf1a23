"""Notification of the progress of a sweep, for progress bars and reports."""

from __future__ import annotations

from ..cache.sweep_tables import SweepRow


class SweepListener:
    """Receives the events of a sweep. Override the methods of interest; they are called from several threads."""

    def decomposing(self, num_tensors: int) -> None:
        """React to the start of decompositions; spectra that the store has are counted too."""

    def tensor_done(self, name: str, bytes_read: int) -> None:
        """React to a tensor whose spectrum is in the store (runner "threads" only)."""

    def scoring(self, num_candidates: int) -> None:
        """React to the start of the candidates."""

    def scored(self, row: SweepRow, label: str, best: SweepRow | None, best_label: str, reused: bool) -> None:
        """React to a candidate that has a row in the table; `best` is the best so far."""

    def close(self) -> None:
        """React to the end of the sweep, with or without success."""
