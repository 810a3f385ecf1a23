"""Import the function of `--evaluate module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from ...errors import EvaluatorError, one_line, suggestion
from .evaluator import Evaluator, from_function


def load_function(place: str) -> Evaluator:
    """Return the evaluator of "module:function"; the module is an installed one, or a file of the current folder.

    Raises
    ------
    EvaluatorError : no such module or function, or the module cannot be imported
    """
    module_name, colon, function_name = place.partition(":")
    if (
        not colon
        or not module_name
        or not function_name
        or not all(part.isidentifier() for part in module_name.split("."))
    ):
        raise EvaluatorError(f"--evaluate {place!r}: expected module:function, such as scores:accuracy for scores.py")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise EvaluatorError(
                f"--evaluate {place}: there is no module {module_name}: expected an installed one, or"
                f" {module_name}.py in {here}"
            ) from None
        raise EvaluatorError(f"--evaluate {place}: {module_name} needs {error.name}, which is not installed") from None
    except Exception as error:
        raise EvaluatorError(
            f"--evaluate {place}: {module_name} cannot be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        what = "is no function" if function is not None else "does not exist"
        raise EvaluatorError(f"--evaluate {place}: {function_name} {what}{suggestion(function_name, names)}")
    return from_function(function, name=function_name)
