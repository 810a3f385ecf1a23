"""What scores a candidate, and what identifies it, so that a changed evaluator never reuses old scores."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from ...errors import EvaluatorError
from ..candidate import Candidate

EvaluateFunction = Callable[[Candidate], Any]


@dataclass(frozen=True, slots=True)
class Evaluator:
    """A function from a candidate to one number, or to several by name.

    name : of the metric where the function returns one number; in messages
    identity : JSON data that changes whenever the scores may: versions, hashes of code and of data
    metrics : names of the metrics where they are known before the first call
    lower_is_better : those of them whose smaller values are better
    """

    name: str
    evaluate: EvaluateFunction
    identity: object
    metrics: tuple[str, ...] = ()
    lower_is_better: frozenset[str] = field(default_factory=frozenset[str])

    def __call__(self, candidate: Candidate) -> dict[str, float]:
        """Return the scores by metric.

        Raises
        ------
        EvaluatorError : the function returned something else than finite numbers
        """
        result = self.evaluate(candidate)
        scores = result if isinstance(result, Mapping) else {self.name: result}
        if not scores:
            raise EvaluatorError(f"{self.name}: returned no score; expected a number, or numbers by name")
        return {str(name): self._number(name, value) for name, value in scores.items()}

    def _number(self, name: object, value: object) -> float:
        number: Any = value
        if not isinstance(value, Real) and hasattr(value, "item"):
            with suppress(RuntimeError, ValueError):  # what is no single number is refused below
                number = number.item()  # a number of NumPy or torch
        if isinstance(number, bool) or not isinstance(number, Real):
            raise EvaluatorError(
                f"{self.name}: returned {str(value)[:60]!r} ({type(value).__name__}) for {name!r}; expected a number,"
                " or numbers by name"
            )
        if not math.isfinite(float(number)):
            raise EvaluatorError(f"{self.name}: returned {float(number)} for {name!r}; expected a finite number")
        return float(number)


def from_function(function: EvaluateFunction, *, name: str | None = None, key: str | None = None) -> Evaluator:
    """Return the evaluator of a Python function.

    Parameters
    ----------
    key : identifies what the function computes. By default the source file of the function does; scores of a lambda, of
        a function inside of a function and of an object are not reused, because what they refer to is not known
    """
    label = name or getattr(function, "__name__", type(function).__name__)
    label = label if label.isidentifier() else "score"
    return Evaluator(label, function, {"function": label, "key": key} if key is not None else _identity(function))


def _identity(function: EvaluateFunction) -> object:
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", "")
    if code is None or "<" in name or not Path(code.co_filename).is_file():
        return {"not reused": uuid.uuid4().hex}
    return {"function": name, "source": hash_file(Path(code.co_filename))}


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combine(evaluators: Sequence[Evaluator]) -> Evaluator:
    """Return one evaluator with the metrics of all of them.

    Raises
    ------
    EvaluatorError : at an evaluation, if two of them return the same metric
    """
    if len(evaluators) == 1:
        return evaluators[0]

    def evaluate(candidate: Candidate) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in evaluators:
            scores = one(candidate)
            if both := sorted(found.keys() & scores.keys()):
                raise EvaluatorError(
                    f"{one.name}: returns {both[0]!r}, which another evaluator returns too; rename one"
                )
            found |= scores
        return found

    return Evaluator(
        " and ".join(one.name for one in evaluators),
        evaluate,
        [one.identity for one in evaluators],
        tuple(metric for one in evaluators for metric in one.metrics) if all(one.metrics for one in evaluators) else (),
        frozenset().union(*(one.lower_is_better for one in evaluators)),
    )
