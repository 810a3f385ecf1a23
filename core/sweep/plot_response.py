"""Show how the score depends on each parameter: a PNG by matplotlib, or bars of text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from ..cache.sweep_tables import SweepRow
from ..errors import RecipeError
from ..recipe.settings import Scalar
from .grid import show_value

_BAR_WIDTH = 30
_MOST_BARS = 20


@dataclass(frozen=True, slots=True)
class Response:
    """The best score at each value of one parameter, whatever the others are.

    points : (value, score) of every candidate
    best : (value, best score) in the order of the values; numbers ascend
    """

    name: str
    points: tuple[tuple[Scalar, float], ...]
    best: tuple[tuple[Scalar, float], ...]


def responses(rows: Sequence[SweepRow], metric: str, lower_is_better: bool) -> list[Response]:
    """Return the response to each parameter of which the scored rows have at least two values."""
    scored = [(row.settings, row.metrics.get(metric)) for row in rows if row.status == "scored"]
    pairs = [(settings, score) for settings, score in scored if score is not None]
    better = min if lower_is_better else max
    found: list[Response] = []
    for name in dict.fromkeys(name for settings, _ in pairs for name in settings):
        points = [(settings[name], score) for settings, score in pairs if name in settings]
        values = list(dict.fromkeys(value for value, _ in points))
        if all(_is_number(value) for value in values):
            values.sort(key=lambda value: float(value or 0))
        best = tuple((value, better(score for other, score in points if other == value)) for value in values)
        if len(values) > 1:
            found.append(Response(name, tuple(points), best))
    return found


def response_text(rows: Sequence[SweepRow], metric: str, lower_is_better: bool) -> list[str]:
    """Return one line of at most 80 characters for each value of each parameter, with a bar for the best score there.

    A bar begins at the worst of these scores and is full at the best.
    """
    lines: list[str] = []
    for response in responses(rows, metric, lower_is_better):
        shown = response.best[:: max(1, -(-len(response.best) // _MOST_BARS))]
        scores = [score for _, score in response.best]
        low, high = min(scores), max(scores)
        lines += ["", f"best {metric} by {response.name}"]
        width = max(len(show_value(value)) for value, _ in shown)
        for value, score in shown:
            share = (score - low) / (high - low) if high > low else 1.0
            share = 1.0 - share if lower_is_better and high > low else share
            bar = "#" * (1 + round(share * (_BAR_WIDTH - 1)))
            lines.append(f"  {show_value(value)[:20]:>{min(width, 20)}}  {score:<10.6g} {bar}")
    return lines


def check_can_plot() -> None:
    """Check that matplotlib is installed, before anything is computed.

    Raises
    ------
    RecipeError : it is not
    """
    if find_spec("matplotlib") is None:
        raise RecipeError("--plot needs matplotlib: pip install 'eigenmerge[plot]'")


def response_png(rows: Sequence[SweepRow], metric: str, lower_is_better: bool) -> bytes:
    """Return a PNG image with one diagram per parameter: every candidate as a point, the best of each value as a line.

    Raises
    ------
    RecipeError : matplotlib is not installed
    """
    check_can_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = responses(rows, metric, lower_is_better)
    figure = Figure(figsize=(5 * max(1, len(found)), 4), dpi=110, layout="constrained")
    for number, response in enumerate(found, 1):
        axes = figure.add_subplot(1, len(found), number)
        numeric = all(_is_number(value) for value, _ in response.best)
        places = {value: float(value or 0) if numeric else index for index, (value, _) in enumerate(response.best)}
        axes.plot(
            [places[value] for value, _ in response.points], [score for _, score in response.points], ".", alpha=0.4
        )
        axes.plot([places[value] for value, _ in response.best], [score for _, score in response.best], "-o")
        if not numeric:
            axes.set_xticks(list(places.values()), [show_value(value) for value in places])
        elif min(places.values()) > 0 and max(places.values()) >= 20 * min(places.values()):
            axes.set_xscale("log")
        axes.set(xlabel=response.name, ylabel=metric)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
