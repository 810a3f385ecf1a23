"""What a reader of a report should know, in words: dominating experts, conflicts, ill-posed layers, no effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .report import ExpertReport, LayerReport, Report

_DOMINATES = 2.0  # times the share that every expert has where all are of equal norm
_ALMOST_ALL = 0.8
_KEPT = 0.3  # interference below which the experts are kept
_CONFLICT = -0.1  # cosine of two experts; the estimate over all tensors is more exact than this
_NO_EFFECT = 1e-3
_NEARLY_BASE = 0.05  # norm of the merged delta relative to the mean expert
_MOST_NAMED = 3


def report_warnings(report: Report) -> list[str]:
    """Return one sentence for each finding, the most important first."""
    return [
        *_harmed(report.experts),
        *_farther(report),
        *_dominating(report.experts),
        *_conflicts(report),
        *_ill_posed(report.layers),
        *_without_effect(report),
        *_left_out(report.experts),
        *report.plan_warnings,
    ]


def _harmed(experts: Sequence[ExpertReport]) -> Iterator[str]:
    for expert in experts:
        value = expert.total.interference
        if value is not None and value > 1.0:
            yield (
                f"{expert.name}: the result is worse for it than the base: its interference is {value:.2f} times that"
                " without a merge; give it more weight, or merge it with another method"
            )


def _farther(report: Report) -> Iterator[str]:
    layers = [layer for layer in report.layers if layer.is_farther and not _is_kept(layer)]
    known = [layer for layer in report.layers if layer.is_farther is not None]
    if layers:
        share = "" if len(known) == len(layers) else f" of {len(known)}"
        yield (
            f"{len(layers)}{share} tensors are farther from every expert than the base is ({_names(layers)}): the"
            " merged change may be too large; compare with a lower scale, or lower weights"
        )


def _is_kept(layer: LayerReport) -> bool:
    """Return whether the experts are kept although the result is far from each, as a sum of orthogonal ones is."""
    return layer.interference is not None and layer.interference < _KEPT


def _dominating(experts: Sequence[ExpertReport]) -> Iterator[str]:
    shares = [expert.total.share for expert in experts]
    known = [share for share in shares if share is not None]
    if len(known) < 2:
        return
    limit = min(_ALMOST_ALL, _DOMINATES / len(known)) if len(known) > 2 else _ALMOST_ALL
    for expert in experts:
        share = expert.total.share
        if share is not None and share > limit:
            yield (
                f"{expert.name} dominates: its task vector has {share:.0%} of the squared norm of all {len(known)}"
                " experts; lower its weight if the others matter as much"
            )


def _conflicts(report: Report) -> Iterator[str]:
    if report.overlap is None:
        return
    names = [expert.name for expert in report.experts]
    pairs = [
        (value, names[first], names[second])
        for first, row in enumerate(report.overlap)
        for second, value in enumerate(row)
        if first < second and value is not None and value < _CONFLICT
    ]
    for value, one, other in sorted(pairs)[:_MOST_NAMED]:
        yield f"{one} and {other} conflict: the cosine of their task vectors is {value:.2f}"
    if len(pairs) > _MOST_NAMED:
        yield f"{len(pairs) - _MOST_NAMED} more pairs of experts conflict"


def _ill_posed(layers: Sequence[LayerReport]) -> Iterator[str]:
    noted = [layer for layer in layers if any("ill-posed" in note for note in layer.notes)]
    if noted:
        yield f"{_count(noted)} ill-posed, so their directions are arbitrary ({_names(noted)}); see their notes"
    below = [layer for layer in layers if any(curve.below_floor for curve in layer.curves)]
    if below:
        yield (
            f"{_count(below)} kept with directions below the level of rounding ({_names(below)}): these may be the"
            " rounding of the experts' storage"
        )
    kept = [layer for layer in layers if any(note.startswith("kept the base") for note in layer.notes)]
    if kept:
        yield f"{_count(kept)} the base's, because of NaN or Inf ({_names(kept)})"


def _without_effect(report: Report) -> Iterator[str]:
    changes = [layer.svc_change for layer in report.layers if layer.svc_change is not None]
    if changes and max(changes) < _NO_EFFECT:
        yield f"SVC had no effect: it changed no merged delta by more than {max(changes):.1g} of its norm"
    ratios = [layer.relative_delta for layer in report.layers if layer.relative_delta is not None]
    small = [ratio for ratio in ratios if ratio < _NEARLY_BASE]
    if ratios and 2 * len(small) > len(ratios):
        yield (
            f"the result is nearly the base: in {len(small)} of {len(ratios)} tensors the merged delta has less than"
            f" {_NEARLY_BASE:.0%} of the norm of the mean expert"
        )


def _left_out(experts: Sequence[ExpertReport]) -> Iterator[str]:
    for expert in experts:
        if expert.placed is not None and expert.placed < 1.0:
            yield f"{expert.name}: {expert.placed:.1%} of its parameters have a place in the result"
        if expert.weights == (0.0, 0.0):
            yield f"{expert.name} has weight 0 in every tensor"


def _count(layers: Sequence[LayerReport]) -> str:
    return "1 tensor is" if len(layers) == 1 else f"{len(layers)} tensors are"


def _names(layers: Sequence[LayerReport]) -> str:
    names = ", ".join(layer.name for layer in layers[:_MOST_NAMED])
    return names + (", ..." if len(layers) > _MOST_NAMED else "")
