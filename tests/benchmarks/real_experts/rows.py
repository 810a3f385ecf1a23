"""The rows of the benchmark: what is merged, by name. A row is a recipe without models, or a combination of two merges.

`group` says what a row is for: "default" and "published" are the methods, the others are the settings of swudi_a that
were tried in search of a default. "choice" rows differ in one number, which is chosen on validation items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Group = Literal["default", "published", "side", "choice", "tried", "rounded"]


@dataclass(frozen=True, slots=True)
class Row:
    """One merge.

    keys : keys of the recipe: merge_method, parameters, calibration, storage_noise, preset, ...
    of : names of the rows of which this one is a combination, by `combine`
    stored : dtypes of the experts with which the row is measured
    """

    name: str
    group: Group
    keys: Mapping[str, Any] = field(default_factory=dict[str, Any])
    of: tuple[str, ...] = ()
    combine: str = ""
    stored: tuple[str, ...] = ("float32",)


def _method(name: str, method: str, group: Group = "default", *, stored: bool = False, **parameters: Any) -> Row:
    keys: dict[str, Any] = {"merge_method": method}
    if parameters:
        keys["parameters"] = parameters
    return Row(name, group, keys, stored=("float32", "bfloat16") if stored else ("float32",))


def _swudi_a(name: str, group: Group, *, stored: bool = False, **parameters: Any) -> Row:
    return _method(name, "swudi_a", group, stored=stored, **parameters)


BOTH = {"side": "both"}

METHODS = (
    _method("average", "average", stored=True),
    _method("task_arithmetic 0.3", "task_arithmetic", "published", stored=True, scale=0.3),
    _method("ties 0.2", "ties", "published", stored=True, density=0.2),
    _method("iso_c", "iso_c", stored=True),
    _method("iso_c 1.5", "iso_c", "published", scale=1.5),
    _method("iso_cts", "iso_cts"),
    _method("tsv_m", "tsv_m", stored=True),
    _method("dc_merge", "dc_merge"),
    Row("dc_merge preset dc-merge-clip-lora", "published", {"preset": "dc-merge-clip-lora"}),
    Row("dc_merge preset dc-merge-clip-b32-lora", "published", {"preset": "dc-merge-clip-b32-lora"}),
    _method("wudi_pinv", "wudi_pinv", stored=True),
    _method("swudi", "swudi"),
    Row("swudi preset llama-3.2-3b", "published", {"preset": "llama-3.2-3b"}, stored=("float32", "bfloat16")),
    Row("swudi preset clip-vit-b32-8", "published", {"preset": "clip-vit-b32-8"}),
    _method("swudi_soft", "swudi_soft"),
    Row("task_arithmetic preset svc-clip-8", "published", {"preset": "svc-clip-8"}),
    Row("tsv_m preset svc-clip-8", "published", {"preset": "svc-clip-8", "merge_method": "tsv_m"}),
)
MORE_METHODS = (
    _method("task_arithmetic", "task_arithmetic"),
    _method("ties", "ties"),
    _method("model_stock", "model_stock"),
    _method("subspace_boosting", "subspace_boosting"),
    _method("cart", "cart"),
    _method("star", "star"),
    _method("ace", "ace"),
    _method("optmerge closed form", "optmerge", solver="closed_form"),
    _method("swudi preset clip-vit-b16-8", "swudi", "published", exp_time=1800, rank_ratio=0.65),
    _method("iso_cts 1.5", "iso_cts", "published", scale=1.5),
    _method("dare_linear 0.1", "dare_linear", "published", density=0.1, **{"lambda": 0.3}),
    _method("dare_ties 0.1", "dare_ties", "published", density=0.1),
    _method("della 0.3", "della", "published", density=0.3),
    _method("breadcrumbs 0.9", "breadcrumbs", "published", density=0.9, **{"lambda": 0.3}),
    _method("sce 0.1", "sce", "published", select_topk=0.1),
    _method("multislerp", "multislerp"),
    _method("karcher", "karcher"),
    _method("wudi", "wudi"),
)

SIDES = (
    _swudi_a("swudi_a", "side", stored=True),
    _swudi_a("swudi_a outputs", "side", stored=True, side="outputs"),
    _swudi_a("swudi_a both", "side", stored=True, **BOTH),
    _swudi_a("swudi_a smaller", "side", side="smaller"),
)
MORE_SIDES = (
    _method("swudi both", "swudi", "side", exp_time=300, rank_ratio=0.85, **BOTH),
    _method("swudi_soft both", "swudi_soft", "side", **BOTH),
    _method("optmerge closed form both", "optmerge", "side", solver="closed_form", **BOTH),
)

FACTORS = (1.15, 1.3, 0.85, 1.5)
SHARES = (0.3, 0.7, 0.4, 0.6)
CHOICES = (
    *(_swudi_a(f"swudi_a both x {factor}", "choice", scale=factor, **BOTH) for factor in FACTORS),
    *(_swudi_a(f"swudi_a both, outputs {share}", "choice", outputs_share=share, **BOTH) for share in SHARES),
    *(_swudi_a(f"swudi_a x {factor}", "choice", scale=factor) for factor in (1.15, 1.3)),
    *(_method(f"dc_merge x {factor}", "dc_merge", "choice", scale=factor) for factor in (1.5, 2.0, 3.0, 4.0)),
    *(_method(f"tsv_m x {factor}", "tsv_m", "choice", scale=factor) for factor in (1.5, 2.0)),
    *(_method(f"iso_c x {factor}", "iso_c", "choice", scale=factor) for factor in (2.0, 3.0)),
)

RULES = ("entropy", "gavish_donoho", "d_aware_entropy", "storage_noise", "cumvar_0.99", "wudi_risk")
MORE_RULES = ("stable_rank", "participation", "entropy_sq", "d_aware_participation_sqrt", "loss_elbow")
TRIED = (
    *(_swudi_a(f"swudi_a both, {rule}", "tried", rank_rule=rule, **BOTH) for rule in RULES),
    *(_swudi_a(f"swudi_a both, rank x {scale}", "tried", rank_scale=scale, **BOTH) for scale in (0.8, 1.25)),
    *(_swudi_a(f"swudi_a, {rule}", "tried", rank_rule=rule) for rule in RULES if rule != "storage_noise"),
    _swudi_a("swudi_a, storage_noise", "tried", stored=True, rank_rule="storage_noise"),
    *(_swudi_a(f"swudi_a, {rule}", "tried", rank_rule=rule) for rule in MORE_RULES),
    _swudi_a("swudi_a both, filter shrinkage", "tried", filter="shrinkage", **BOTH),
    Row(
        "swudi_a both, svc",
        "tried",
        {"merge_method": "swudi_a", "parameters": BOTH, "calibration": {"svc": {}}},
    ),
    Row("swudi_a both, norms kept", "tried", of=("swudi_a", "swudi_a outputs"), combine="norms kept"),
    Row("swudi_a, side of the smaller norm", "tried", of=("swudi_a", "swudi_a outputs"), combine="smaller norm"),
    Row("swudi_a, side of the larger norm", "tried", of=("swudi_a", "swudi_a outputs"), combine="larger norm"),
    Row(
        "swudi_a, side of least interference", "tried", of=("swudi_a", "swudi_a outputs"), combine="least interference"
    ),
    Row(
        "swudi_a, side or both, of least interference",
        "tried",
        of=("swudi_a", "swudi_a outputs", "swudi_a both"),
        combine="least interference",
    ),
    Row("swudi_a both and tsv_m", "tried", of=("swudi_a both", "tsv_m"), combine="mean"),
)

LARV_ON = ("swudi_a", "iso_c 1.5", "tsv_m")
LARV = tuple(
    Row(f"{name}, {variant}", "choice", of=(name,), combine=variant)
    for variant in ("larv narrow tiers", "larv tiers", "larv continuous")
    for name in LARV_ON
)

ROUNDED = tuple(
    Row(
        f"{name}, storage_noise {handling}",
        "rounded",
        {"merge_method": method, "parameters": parameters, "storage_noise": handling},
        stored=("bfloat16",),
    )
    for name, method, parameters in (
        ("swudi_a", "swudi_a", {}),
        ("swudi_a both", "swudi_a", BOTH),
        ("tsv_m", "tsv_m", {}),
    )
    for handling in ("ignore", "shrink")
)

GRID = {"exp_time": [30, 300, 3000], "rank_ratio": [0.25, 0.5, 0.75, 1.0]}
SWEEP = tuple(
    _method(f"swudi t={time} r={ratio}", "swudi", "choice", exp_time=time, rank_ratio=ratio)
    for time in GRID["exp_time"]
    for ratio in GRID["rank_ratio"]
)

# In the order of the measurement: an unfinished run has the rows of the first parts for every set.
PARTS: dict[str, tuple[Row, ...]] = {
    "sides": SIDES,
    "methods": METHODS,
    "choices": CHOICES,
    "larv": LARV,
    "tried": TRIED,
    "rounded": ROUNDED,
    "more": (*MORE_SIDES, *MORE_METHODS),
    "sweep": SWEEP,
}
ROWS: dict[str, Row] = {row.name: row for rows in PARTS.values() for row in rows}
