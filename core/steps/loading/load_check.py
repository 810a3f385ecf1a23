"""The result of loading a checkpoint: one entry for each check, and what the user may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What is checked beyond values, keys and tokenizer.

    generate : number of tokens to generate; 0 generates none
    perplexity : measure it; None measures it for small models whose base and experts are on this machine
    run_model_code : execute the Python files of a model that brings its own architecture. Only for models that you
        trust
    device : where a model is loaded to generate or to measure
    """

    generate: int = 0
    perplexity: bool | None = None
    run_model_code: bool = False
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """One check.

    name : "values", "keys", "tokenizer", "chat template", "generation", "perplexity"
    detail : what was found or compared; of "not checked": the reason
    problems : one line each, with the tensor, key or file; empty unless the check failed
    requested : the user asked for this check by an option
    """

    name: str
    outcome: Outcome
    detail: str = ""
    problems: tuple[str, ...] = ()
    requested: bool = False


class NotCheckedError(Exception):
    """A check is not possible here; the message says why."""


def passed(name: str, detail: str) -> LoadCheck:
    """Return a check without problems."""
    return LoadCheck(name, "ok", detail)


def failed(name: str, problems: list[str], detail: str = "") -> LoadCheck:
    """Return a failed check."""
    return LoadCheck(name, "failed", detail, tuple(problems))
