"""Score candidates by a command that prints a number, as `python score.py {checkpoint}`."""

from __future__ import annotations

import math
import shlex
import subprocess
from pathlib import Path

from ...errors import EvaluatorError
from ..candidate import Candidate
from .evaluator import Evaluator, hash_file

PLACEHOLDER = "{checkpoint}"
_LONGEST_OUTPUT = 200


def command_evaluator(command: str) -> Evaluator:
    """Return the evaluator of a command line. It is started without a shell; the last line that it prints is the score.

    The command, and each file that it names, identify the scores.

    Raises
    ------
    EvaluatorError : the command has no {checkpoint}, or cannot be divided into words
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise EvaluatorError(f"--evaluate-command {command!r}: {error}") from None
    if not any(PLACEHOLDER in word for word in words):
        raise EvaluatorError(
            f"--evaluate-command {command!r}: does not name the checkpoint; expected {PLACEHOLDER}, such as"
            f" 'python score.py {PLACEHOLDER}'"
        )

    def evaluate(candidate: Candidate) -> float:
        folder = str(candidate.directory())
        arguments = [word.replace(PLACEHOLDER, folder) for word in words]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False, errors="replace")
        except OSError as error:
            raise EvaluatorError(f"--evaluate-command: {arguments[0]} cannot be started: {error.strerror}") from None
        if done.returncode != 0:
            last = _last_line(done.stderr) or _last_line(done.stdout) or "it printed nothing"
            raise EvaluatorError(f"--evaluate-command: {arguments[0]} ended with exit code {done.returncode}: {last}")
        last = _last_line(done.stdout)
        try:
            number = float(last)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise EvaluatorError(f"--evaluate-command: expected a finite number as the last line, found {last!r}")
        return number

    files = {word: hash_file(Path(word)) for word in words if _is_file(word)}
    return Evaluator("score", evaluate, {"command": words, "files": files}, ("score",))


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LONGEST_OUTPUT] if lines else ""
