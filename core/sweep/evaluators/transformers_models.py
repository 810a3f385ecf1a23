"""Load candidates with Transformers, and refuse what it would only warn about."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import EvaluatorError


def import_transformers(evaluator: str) -> Any:
    """Return the module `transformers`.

    Raises
    ------
    EvaluatorError : it is not installed
    """
    try:
        import transformers
    except ImportError:
        raise EvaluatorError(f"evaluator {evaluator!r} needs Transformers: pip install 'eigenmerge[demo]'") from None
    return transformers


def transformers_version() -> str:
    """Return the version of Transformers, on which scores may depend."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return ""


def load_cleanly(auto_class: Any, folder: Path) -> Any:
    """Return the model of a folder, in float32 and without dropout.

    Raises
    ------
    EvaluatorError : the checkpoint lacks a tensor of the model, which Transformers would fill with random numbers
    """
    import_transformers("transformers").utils.logging.disable_progress_bar()
    model, report = auto_class.from_pretrained(folder, dtype="float32", output_loading_info=True)
    for kind in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, report.get(kind) or ())):
            raise EvaluatorError(
                f"{auto_class.__name__}: the checkpoint has no {wrong[0]} of the right shape, so the model would be"
                " random there; expected a model with a head for this task"
            )
    return model.eval()
