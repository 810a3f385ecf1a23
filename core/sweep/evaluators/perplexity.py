"""Score candidates by the perplexity of a causal language model on a text file."""

from __future__ import annotations

import math
from pathlib import Path

from ...errors import EvaluatorError
from ..candidate import Candidate
from .evaluator import Evaluator, hash_file
from .transformers_models import import_transformers, load_cleanly, transformers_version

_WINDOW = 512


def perplexity_evaluator(file: str | Path, *, window: int = _WINDOW) -> Evaluator:
    """Return the evaluator "perplexity", where lower is better: exp of the mean loss per token.

    The text is cut into windows that do not overlap; the first token of each is not predicted.

    Parameters
    ----------
    file : text in UTF-8
    window : tokens; a model with fewer positions takes its own number

    Raises
    ------
    EvaluatorError : the file cannot be read, or Transformers is not installed
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluatorError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not text.strip():
        raise EvaluatorError(f"{path}: has no text")
    import_transformers("perplexity")

    def evaluate(candidate: Candidate) -> float:
        import torch

        transformers = import_transformers("perplexity")
        folder = candidate.directory()
        model = load_cleanly(transformers.AutoModelForCausalLM, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
        size = min(window, int(getattr(model.config, "max_position_embeddings", window) or window))
        windows = [part for part in ids.split(size) if len(part) > 1]
        if not windows:
            raise EvaluatorError(f"{path}: has {len(ids)} token; expected at least two")
        loss, count = 0.0, 0
        with torch.inference_mode():
            for step, part in enumerate(windows):
                logits = model(part[None]).logits[0, :-1].double()
                loss += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
                count += len(part) - 1
                candidate.report(step, math.exp(min(loss / count, 700.0)))
        return math.exp(min(loss / count, 700.0))

    identity = {"perplexity": 1, "file": hash_file(path), "window": window, "transformers": transformers_version()}
    return Evaluator("perplexity", evaluate, identity, ("perplexity",), frozenset({"perplexity"}))
