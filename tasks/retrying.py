"""When a task is worth another try."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from ..core.errors import EigenmergeError


def worth_retrying(_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Storage has done its own retries by then, and what the user must cure does not pass by waiting."""
    try:
        state.result(raise_on_failure=True)
    except EigenmergeError:
        return False
    except Exception:
        return True
    return False
