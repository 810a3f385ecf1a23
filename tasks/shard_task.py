"""What the tasks on one layer shard have in common: when to try again, and that nothing is cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from ..core.errors import EigenmergeError

P = ParamSpec("P")
R = TypeVar("R")


def shard_task(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """The decorator of a task whose step looks for its own objects in the store, so that running it twice is harmless.

    NO_CACHE: a Prefect cache key that points at an object returns it even when the object is gone.
    """
    return task(
        name=name,
        task_run_name=run_name,
        retries=2,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def worth_retrying(_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Storage has done its own retries by then, and what the user must cure does not pass by waiting."""
    try:
        state.result(raise_on_failure=True)
    except EigenmergeError:
        return False
    except Exception:
        return True
    return False
