"""Score candidates by tasks of lm-evaluation-harness (EleutherAI), through its Python interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ...errors import EvaluatorError, suggestion
from ..candidate import Candidate
from .evaluator import Evaluator


def lm_eval_evaluator(
    tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 8, include_path: str | None = None
) -> Evaluator:
    """Return the evaluator of tasks by name: one metric for each, its normalized accuracy where the task has one.

    Parameters
    ----------
    tasks : as `lm_eval --tasks`
    limit : items of each task; all by default
    include_path : folder with task definitions of the user's own

    Raises
    ------
    EvaluatorError : lm-evaluation-harness is not installed, or has no such task
    """
    harness, tasks_module = _import_harness()
    manager = tasks_module.TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.all_tasks:
            raise EvaluatorError(f"--lm-eval {task}: there is no such task{suggestion(task, manager.all_tasks)}")

    def evaluate(candidate: Candidate) -> dict[str, float]:
        found: Any = harness.simple_evaluate(
            model="hf",
            model_args=f"pretrained={candidate.directory()},dtype=float32",
            tasks=list(tasks),
            limit=limit,
            batch_size=batch_size,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=False,
        )
        return {task: main_metric(task, found["results"][task]) for task in tasks}

    identity = {"lm-eval": version("lm_eval"), "tasks": list(tasks), "limit": limit, "include_path": include_path}
    return Evaluator("lm-eval", evaluate, identity, tuple(tasks))


def main_metric(task: str, results: Mapping[str, object]) -> float:
    """Return acc_norm, acc, exact_match, or the first other number of a task's results.

    Raises
    ------
    EvaluatorError : the results have no number
    """
    numbers = {
        name.partition(",")[0]: float(value)
        for name, value in results.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and "stderr" not in name
        and name != "sample_len"
    }
    for name in ("acc_norm", "acc", "exact_match", *numbers):
        if name in numbers:
            return numbers[name]
    raise EvaluatorError(f"--lm-eval {task}: has no number among its results: {', '.join(map(str, results))[:100]}")


def _import_harness() -> tuple[Any, Any]:
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        import lm_eval.tasks  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise EvaluatorError("--lm-eval needs an extra: pip install 'eigenmerge[lm-eval]'") from None
    return lm_eval, lm_eval.tasks
