"""Published settings by name. A preset supplies the keys that a recipe does not set.

Each preset lists the methods that its authors published settings for. The first method is the default; a recipe may
select another one with `merge_method`. The multimodal presets keep vision tower, embeddings, lm_head, norms and biases
of the base, as the published code does. Sources: arXiv:2606.07289 (SWUDI, SWUDI-A), tables of settings; the script
run.sh and merge_func.py of github.com/lyymuwu/SVC (arXiv:2602.05536); README.md of github.com/Tobeginwith/DC-Merge
(arXiv:2603.06242), whose factor on the merged delta is chosen on validation data and is not part of the presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ..errors import RecipeError, suggestion

_VISION_TOWER = r"re:(^|\.)(visual|vision_tower|vision_model|vision_encoder)\."

# recipe keys of the multimodal presets: merge matrices of the language model only
_LANGUAGE_MATRICES_ONLY: Mapping[str, Any] = {
    "embeddings": "base",
    "lm_head": "base",
    "vectors": "base",  # norms and biases
    "conv": "base",
    "rules": [{"match": _VISION_TOWER, "action": "keep_base"}],
}


@dataclass(frozen=True, slots=True)
class Preset:
    """One published setting.

    summary : one line for `eigenmerge methods` and the documentation
    methods : parameters by method name, the default method first
    keys : other recipe keys that the preset sets
    """

    summary: str
    methods: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _multimodal(summary: str, exp_time: float, rank_ratio: float, scale: float) -> Preset:
    methods = {
        "swudi": {"exp_time": exp_time, "rank_ratio": rank_ratio, "scale": scale},
        "swudi_a": {"rank_rule": "participation_sqrt", "scale": scale},
    }
    return Preset(summary, methods, _LANGUAGE_MATRICES_ONLY)


def _swudi(summary: str, exp_time: float, rank_ratio: float) -> Preset:
    return Preset(summary, {"swudi": {"exp_time": exp_time, "rank_ratio": rank_ratio, "scale": 1.0}})


def _swudi_a(summary: str) -> Preset:
    return Preset(summary, {"swudi_a": {"rank_rule": "participation_sqrt"}})


def _dc_merge(summary: str, rank: int | None, smoothing: str) -> Preset:
    settings = {"rank": rank, "smoothing": smoothing, "smoothing_ratio": 5.0, "density": 1e-3, "structural_mask": True}
    return Preset(summary, {"dc_merge": settings})


PRESETS: Mapping[str, Preset] = {
    "clip-vit-b32-8": _swudi("CLIP ViT-B/32, 8 tasks: SWUDI t=1300 r=0.65", 1300.0, 0.65),
    "clip-vit-b16-8": _swudi("CLIP ViT-B/16, 8 tasks: SWUDI t=1800 r=0.65", 1800.0, 0.65),
    "clip-vit-l14": _swudi_a("CLIP ViT-L/14: SWUDI-A participation_sqrt"),
    "clip-20": _swudi_a("CLIP, 20 tasks: SWUDI-A participation_sqrt"),
    "flan-t5-lora": _swudi_a("Flan-T5, LoRA experts of rank 16: SWUDI-A participation_sqrt"),
    "llama-3.2-3b": _swudi("Llama-3.2-3B: SWUDI t=300 r=0.85", 300.0, 0.85),
    "qwen2-vl-7b": _multimodal(
        "Qwen2-VL-7B, LoRA experts: SWUDI t=1300 r=0.01, or SWUDI-A, scale 0.2", 1300.0, 0.01, 0.2
    ),
    "svc-clip-8": Preset(
        "CLIP, 8 tasks: SVC after task arithmetic with 0.3, or after ties, tsv_m, iso_c, iso_cts or star",
        {
            "task_arithmetic": {"weight": 1.0, "lambda": 0.3},
            "ties": {"weight": 1.0, "density": 0.2},
            "tsv_m": {"scale": 1.0},
            "iso_c": {"scale": 1.0},
            "iso_cts": {"scale": 1.0, "common_fraction": 0.8},
            "star": {"scale": 1.0, "eta": 40.0},
        },
        {"calibration": {"svc": {}}},  # alpha: 1 after tsv_m, 1/N after the others
    ),
    "dc-merge-clip": _dc_merge("CLIP, full fine-tuning: dc_merge without smoothing", None, "none"),
    "dc-merge-clip-lora": _dc_merge(
        "CLIP ViT-B/16 and ViT-L/14, LoRA of rank 16: dc_merge, values averaged", 16, "average"
    ),
    "dc-merge-clip-b32-lora": _dc_merge("CLIP ViT-B/32, LoRA of rank 16: dc_merge, linear values", 16, "linear"),
    "internvl2.5-1b": _multimodal("InternVL2.5-1B: SWUDI t=300 r=0.65, or SWUDI-A, scale 0.1", 300.0, 0.65, 0.1),
}


def apply_preset(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's mapping with the keys of its preset added; a copy where `preset` is not set.

    Keys and single parameters of the recipe override those of the preset; the preset's rules follow the recipe's rules.
    Applying a preset twice equals applying it once, so a canonical recipe can be loaded again.

    Raises
    ------
    RecipeError : the preset does not exist, or has no setting for the recipe's merge_method
    """
    name = recipe.get("preset")
    if name is None:
        return dict(recipe)
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        raise RecipeError(f"preset {name!r} does not exist{suggestion(str(name), PRESETS)}")
    filled = dict(recipe)
    method = filled.setdefault("merge_method", next(iter(preset.methods)))
    if method not in preset.methods:
        raise RecipeError(
            f"preset {name!r} has no setting for merge_method {method!r}, only for {', '.join(preset.methods)}; remove"
            " merge_method or the preset"
        )
    explicit = filled.get("parameters")
    if explicit is None or isinstance(explicit, Mapping):  # the recipe's validation refuses other types
        filled["parameters"] = {**preset.methods[method], **cast("Mapping[str, Any]", explicit or {})}
    for key, value in preset.keys.items():
        if key == "rules" and (filled.get(key) is None or isinstance(filled[key], list)):
            recipe_rules: list[Any] = filled.get(key) or []
            filled[key] = [*recipe_rules, *(rule for rule in value if rule not in recipe_rules)]
        else:
            filled.setdefault(key, value)
    return filled
