"""Load a model with its weights, generate tokens, and measure its perplexity on a short text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .load_check import LoadCheck, NotCheckedError, failed, passed
from .local_copy import local_copy
from .model_class import ModelClass, find_class, first_line, load_tokenizer, quiet_transformers
from .sample_text import SAMPLE_TEXT
from .sources import ModelSource

_PROMPT_CHARACTERS = 62  # the first sentence, without its last words
_MOST_TOKENS = 512
# A merge loses some of what its sources predict; a model with weights at the wrong place predicts nothing. The number
# is chosen to tell these apart, and is no measure of quality.
_LARGEST_RATIO = 10.0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with its tokenizer."""

    model_class: ModelClass
    model: Any
    tokenizer: Any


@contextmanager
def load_model(
    source: ModelSource, options: Mapping[str, object] | None, *, device: str, run_model_code: bool
) -> Iterator[LoadedModel]:
    """Yield a model, with its adapter where it has one.

    Raises
    ------
    NotCheckedError : it cannot be loaded, with the reason
    CheckpointError, StoreError : it cannot be read
    """
    with local_copy(source.model, options, weights=True) as folder:
        if source.adapter is None:
            yield _load(folder, None, device, run_model_code)
            return
        with local_copy(source.adapter, options, weights=True) as adapter:
            yield _load(folder, adapter, device, run_model_code)


def _load(folder: Path, adapter: Path | None, device: str, run_model_code: bool) -> LoadedModel:
    found = find_class(folder, run_model_code=run_model_code)
    with quiet_transformers():
        try:
            dtype = getattr(found.config, "dtype", None)
            # A CPU computes float16 very slowly.
            dtype = torch.float32 if device == "cpu" and dtype == torch.float16 else "auto"
            model = found.model.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
            tokenizer = load_tokenizer(folder, run_model_code=run_model_code)
            if adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, str(adapter))
            return LoadedModel(found, model.to(device).eval(), tokenizer)
        except Exception as error:  # whatever transformers or PEFT raises
            raise NotCheckedError(f"it cannot be loaded: {first_line(error)}") from None


def check_generation(loaded: LoadedModel, num_tokens: int) -> LoadCheck:
    """Generate tokens greedily, and check that every logit is finite.

    Raises
    ------
    NotCheckedError : the model does not generate text
    """
    model = loaded.model
    if not model.can_generate():
        raise NotCheckedError(f"{loaded.model_class.name} does not generate text")
    inputs = loaded.tokenizer(SAMPLE_TEXT[:_PROMPT_CHARACTERS], return_tensors="pt")
    ids = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask") if key in inputs}
    with torch.inference_mode(), quiet_transformers():
        try:
            found = model.generate(
                **ids,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        except Exception as error:  # whatever the model raises
            return failed("generation", [f"generation: {first_line(error)}"])
    bad = [step for step, logits in enumerate(found.logits) if not bool(torch.isfinite(logits).all())]
    if bad:
        return failed("generation", [f"generation: the logits of token {bad[0] + 1} have NaN or Inf"])
    text = loaded.tokenizer.decode(found.sequences[0][-len(found.logits) :])
    return passed("generation", f"{len(found.logits)} tokens: {text!r}")


def measure_perplexity(loaded: LoadedModel) -> float:
    """Return exp of the mean cross entropy of each token of the text, given those before it; in nats, float32.

    Raises
    ------
    NotCheckedError : the model is no causal language model, or cannot compute
    """
    if not loaded.model_class.predicts_next_token:
        raise NotCheckedError(f"{loaded.model_class.name} is no causal language model")
    longest = getattr(loaded.model_class.config.get_text_config(), "max_position_embeddings", None) or _MOST_TOKENS
    ids = loaded.tokenizer(SAMPLE_TEXT, return_tensors="pt")["input_ids"][:, : min(longest, _MOST_TOKENS)]
    ids = ids.to(loaded.model.device)
    with torch.inference_mode(), quiet_transformers():
        try:
            logits = loaded.model(input_ids=ids).logits[0].float()
        except Exception as error:  # whatever the model raises
            raise NotCheckedError(first_line(error)) from None
    loss = float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]))
    return math.exp(loss) if loss < 700 else math.inf  # exp(710) is beyond float64


def compare_perplexity(merged: float, sources: Mapping[str, float]) -> LoadCheck:
    """Return the check of the merged model's perplexity against those of base and experts, by name."""
    name = "perplexity"
    shown = ", ".join(f"{source} {value:.4g}" for source, value in sources.items())
    detail = f"{merged:.4g}" + (f"; {shown}" if shown else "; no base or expert was measured")
    if not math.isfinite(merged):
        return failed(name, [f"perplexity: is {merged:.4g}"], detail)
    worst = max(sources.values(), default=math.inf)
    if merged > _LARGEST_RATIO * worst:
        return failed(
            name,
            [f"perplexity: is {merged:.4g}, more than {_LARGEST_RATIO:g} times the largest of its sources ({shown})"],
            detail,
        )
    return passed(name, detail)
