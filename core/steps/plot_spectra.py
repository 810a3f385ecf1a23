"""Plot the spectra of a run from its table of values; reads no vectors."""

from __future__ import annotations

import base64
import io

from ..cache.run_folder import TABLE_NAME, run_object_key
from ..cache.spectra.table_file import read_run_table
from ..errors import ObjectNotFoundError
from ..run import Run

_MOST_CURVES = 400


def plot_spectra(run: Run) -> str | None:
    """Return a PNG image as a data: URI, or None where the run has no spectra or matplotlib is not installed.

    One curve per matrix: values relative to the largest value, over the share of the directions. matplotlib comes with
    the extra "plot".
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    try:
        rows = read_run_table(run.store, run_object_key(run.plan.run_key, TABLE_NAME))
        curves = [row.spectrum.values.double() for row in rows if len(row.spectrum.values) > 1]
    except ObjectNotFoundError:
        return None
    if not curves:
        return None
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    step = max(1, len(curves) // _MOST_CURVES)
    for values in curves[::step]:
        share = [index / (len(values) - 1) for index in range(len(values))]
        axes.plot(
            share,
            (values / values[0].clamp_min(1e-300)).clamp_min(1e-12).tolist(),
            color="tab:blue",
            alpha=0.25,
            lw=0.8,
        )
    axes.set(yscale="log", xlabel="share of the directions", ylabel="value / largest", title=f"{len(curves)} spectra")
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
