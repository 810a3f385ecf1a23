"""Families of real models in the forms in which they are stored: the merge equals a merge by hand in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .check_case import check_form
from .families import FAMILIES
from .forms import FORMS

# One family for each kind of layout: (in, out), split mixture, stacked mixture, encoder and decoder. Others are slow.
QUICK = {"GPT-2", "Qwen3-MoE", "GPT-OSS", "T5"}
# Transformers 5 calls every module of a layer differently in memory, and shapes do not tell which is which.
REFUSED = {("ViT", "other names"), ("ViT", "LoRA")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=[] if family.name in QUICK else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_merge_of_a_family_equals_the_merge_by_hand(family, form: str, tmp_path: Path) -> None:
    result = check_form(family, form, tmp_path)
    if (family.name, form) in REFUSED:
        assert result.startswith("refused: ") and "\n" not in result
    else:
        assert result in {"yes", "-"}
