"""The exceptions that users see.

Each message names the tensor, key or file, what was expected, what was found and what to do. Each class also
subclasses the built-in exception that fits best. The command line prints `str(error)` on one line and exits with
`exit_code`. Any other exception is a defect of Eigenmerge and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from .escaping import printable


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of printable characters."""
    return printable(" ".join(str(error).split()))


class EigenmergeError(Exception):
    """Base class of all errors that a user can cause or fix.

    source : address of the input file in which the cause was found, where that is known; "" otherwise
    """

    exit_code = 1
    source = ""

    def __str__(self) -> str:
        """Return the message as one printable line: it may name what an untrusted file contains."""
        return printable(" ".join(super().__str__().split()))


class RecipeError(EigenmergeError, ValueError):
    """The recipe is invalid: an unknown key, a misspelled parameter, a pattern that matches no tensor."""

    exit_code = 2


class CheckpointError(EigenmergeError, ValueError):
    """An input checkpoint is missing, malformed, or does not match the others."""


class ShapeError(CheckpointError):
    """Two tensors that must have the same shape differ; the message names both."""


class NonFiniteError(CheckpointError):
    """A tensor holds NaN or Inf; the message names the expert, the tensor and the number of such values."""


class EvaluatorError(EigenmergeError, ValueError):
    """The evaluator of a sweep cannot be used or failed; the message says which one, and what it returned."""


class BudgetError(EigenmergeError, ValueError):
    """The plan needs more memory than allowed; the message names the tensor and both amounts."""


class DestinationError(EigenmergeError, OSError):
    """The destination is not writable, not empty, or one of the inputs."""


class DeployError(EigenmergeError, ValueError):
    """A deployment cannot be applied; the message names what to change."""

    exit_code = 2


class StoreError(EigenmergeError, OSError):
    """A store refused a request, or failed after all retries; the message names the object."""


class NoStoreError(StoreError):
    """A command for a store was given a place that is none."""

    exit_code = 2


class ObjectNotFoundError(StoreError, FileNotFoundError):
    """The store has no object with this key."""


class CorruptObjectError(StoreError):
    """A stored object is truncated or fails its checksum. A corrupt cache object is computed again."""


class ObjectChangedError(StoreError):
    """An object or file is not the one that was seen earlier: it was replaced or rewritten since."""


class WorkerError(EigenmergeError, RuntimeError):
    """Workers of a cluster died repeatedly on the same shard; the message explains how to resume."""


class InterruptedRunError(EigenmergeError, RuntimeError):
    """A signal or the time limit stopped the run; the message explains how to resume."""

    exit_code = 130


def suggestion(word: str, known: Iterable[object]) -> str:
    """Return a hint to append to a message about an unknown word: the closest known word, or all known words.

    Examples: "; did you mean 'weight'?" and "; known: density, weight".
    """
    names = sorted(str(name) for name in known)
    near = nearest(word, names)
    if near is not None:
        return f"; did you mean {near!r}?"
    if not names:
        return "; none is known here"
    return f"; known: {', '.join(names)}" if len(names) <= 40 else ""


def nearest(word: str, known: Iterable[object]) -> str | None:
    """Return the closest known word, None where none is similar."""
    found = get_close_matches(word, sorted(str(name) for name in known), n=1, cutoff=0.5)
    return found[0] if found else None
