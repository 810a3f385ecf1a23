"""Load the tokenizer of a checkpoint, encode a text, and render its chat templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .load_check import LoadCheck, NotCheckedError, failed, passed
from .model_class import first_line, load_tokenizer
from .sample_text import SAMPLE_TEXT

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "*.spm")
_QUESTION = "What is the capital of France?"


def check_tokenizer(folder: Path, num_tokens: int | None, *, run_model_code: bool) -> tuple[list[LoadCheck], Any]:
    """Return the checks of tokenizer and chat template, and the tokenizer, or None where it cannot be loaded.

    Parameters
    ----------
    num_tokens : rows of the embeddings; None where they are unknown
    """
    name = "tokenizer"
    if not any(any(folder.glob(pattern)) for pattern in _FILES):
        return [LoadCheck(name, "not checked", "there are no files of a tokenizer")], None
    try:
        tokenizer = load_tokenizer(folder, run_model_code=run_model_code)
        ids = tokenizer(SAMPLE_TEXT)["input_ids"]
        text = tokenizer.decode(ids)
    except NotCheckedError:
        raise
    except Exception as error:  # whatever a tokenizer raises
        reason = first_line(error)
        if not run_model_code and "trust_remote_code" in reason:
            reason = "it is code of the model, which is not executed; pass --trust-remote-code if you trust it"
            return [LoadCheck(name, "not checked", reason)], None
        return [failed(name, [f"tokenizer: cannot be loaded: {reason}"])], None
    problems = [] if ids and text.strip() else ["tokenizer: encodes an English text to nothing"]
    problems += _out_of_range("tokenizer", ids, num_tokens)
    found = f"{len(ids)} tokens for {len(SAMPLE_TEXT)} characters"
    checks = [failed(name, problems) if problems else passed(name, found)]
    templates = list(_templates(tokenizer))
    if templates:
        lines = [line for label, source in templates for line in _render(tokenizer, label, source, num_tokens)]
        shown = "rendered" if len(templates) == 1 else f"{len(templates)} rendered"
        checks.append(failed("chat template", lines) if lines else passed("chat template", shown))
    return checks, tokenizer


def _templates(tokenizer: Any) -> Iterator[tuple[str, str]]:
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        yield from ((f"chat template {name!r}", source) for name, source in found.items())
    elif found:
        yield "chat template", found


def _render(tokenizer: Any, label: str, source: str, num_tokens: int | None) -> list[str]:
    reason = ""
    # Templates of models for images take lists of parts instead of a text.
    for content in (_QUESTION, [{"type": "text", "text": _QUESTION}]):
        messages = [{"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=source, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # whatever the template raises
            reason = reason or first_line(error)
            continue
        if _QUESTION in text:
            return _out_of_range(label, tokenizer(text, add_special_tokens=False)["input_ids"], num_tokens)
        reason = reason or "the message is not in its result"
    return [f"{label}: cannot be rendered: {reason}"]


def _out_of_range(label: str, ids: list[int], num_tokens: int | None) -> list[str]:
    largest = max(ids, default=-1)
    if num_tokens is None or largest < num_tokens:
        return []
    return [f"{label}: makes token {largest}, the embeddings have {num_tokens} rows"]
