"""The exceptions users see. Each says which tensor, key or file, what was expected, what was found, what to do.

Every one also subclasses the builtin that fits, so that a caller who knows only Python catches it too.
The command line prints `str(error)` on one line and exits with `exit_code`; anything that is not an
`EigenmergeError` is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())


class EigenmergeError(Exception):
    """Base of every error that a user can cause or cure."""

    exit_code = 1


class RecipeError(EigenmergeError, ValueError):
    """The recipe is wrong: unknown key, misspelled parameter, a pattern that matches nothing."""

    exit_code = 2


class CheckpointError(EigenmergeError, ValueError):
    """An input checkpoint is missing, malformed, or does not fit the others."""


class ShapeError(CheckpointError):
    """Two tensors that must agree in shape do not; names both."""


class NonFiniteError(CheckpointError):
    """A tensor holds NaN or Inf; names expert, tensor and how many."""


class BudgetError(EigenmergeError, ValueError):
    """The plan does not fit the memory it was given; names the tensor and both numbers."""


class DestinationError(EigenmergeError, OSError):
    """The destination cannot be written, is not empty, or is one of the inputs."""


class DeployError(EigenmergeError, ValueError):
    """A deployment cannot be applied as asked; says what to change."""

    exit_code = 2


class StoreError(EigenmergeError, OSError):
    """An object store refused, or stayed unreachable after all retries; names the object."""


class ObjectNotFoundError(StoreError, FileNotFoundError):
    """No object at that place."""


class CorruptObjectError(StoreError):
    """A stored object is truncated or fails its checksum. Inside the cache it is recomputed, not raised."""


class WorkerError(EigenmergeError, RuntimeError):
    """Workers of a cluster died again and again on one shard; says how to resume."""


class InterruptedRunError(EigenmergeError, RuntimeError):
    """The run was stopped by a signal or its time limit; says how to resume."""

    exit_code = 130


def suggestion(word: str, known: Any) -> str:
    """ "; did you mean 'weight'?" or "; known: ..." for an error message about an unknown word."""
    names = sorted(str(name) for name in known)
    near = get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return "; none is known here"
    return f"; known: {', '.join(names)}" if len(names) <= 40 else ""
