"""Reports of merges that never ran, for the tests of warnings, pages and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eigenmerge.core.steps.reporting.report import ExpertInLayer, ExpertReport, LayerReport, Report
from eigenmerge.core.steps.reporting.spectrum_curves import Curve, sample_indices

HOSTILE = "</script><img src=x onerror=document.title='taken'>\x1b[31m\u202e&amp;"


def expert(name: str = "math", **total: float) -> ExpertReport:
    return ExpertReport(name, "full", (1.0, 1.0), 1.0, ExpertInLayer(**total))


def curve(name: str = "w", count: int = 5000, rank: int = 40, points: int = 100, **facts: Any) -> Curve:
    """Eigenvalues that fall by eight decades."""
    indices = sample_indices(count, points)
    values = tuple(-8.0 * (index - 1) / count for index in indices)
    return Curve(name, rank, count, False, indices, values, tuple(index / count for index in indices), **facts)


def layer(name: str = "model.layers.0.self_attn.q_proj.weight", **facts: Any) -> LayerReport:
    known: dict[str, Any] = {
        "kind": "query",
        "row": "self_attn.q_proj",
        "depth": 0,
        "method": "swudi",
        "shape": (64, 64),
        "rank": 40,
        "directions": 64,
        "energy": 0.9,
        "why": "swudi: rank_ratio 0.85 (parameters)",
        "noise": None,
        "delta": 1.5,
        "relative_delta": 1.2,
        "is_farther": False,
        "interference": 0.1,
        "svc_change": None,
        "experts": {0: ExpertInLayer(0.5, 0.1, 0.6, 0.0, 0.9), 1: ExpertInLayer(0.5, 0.2, 0.6, 0.0, 0.9)},
        "curves": (curve(name),),
    }
    return LayerReport(name=name, **(known | facts))


def report(*layers: LayerReport, experts: tuple[ExpertReport, ...] | None = None, **facts: Any) -> Report:
    known: Mapping[str, Any] = {
        "title": "swudi: 2 experts",
        "method": "swudi",
        "base": "/models/base",
        "arithmetic": "float32",
        "version": "1.0",
        "run_key": "ab" * 32,
        "recipe": {"merge_method": "swudi"},
        "experts": (expert("math", share=0.5), expert("code", share=0.5)) if experts is None else experts,
        "treatments": {"swudi": len(layers)},
        "layers": layers or (layer(),),
        "overlap": None,
        "interference": 0.15,
        "plan_warnings": (),
    }
    return Report(**(known | facts))
