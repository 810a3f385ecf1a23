"""A Prefect flow whose arguments are checked for credentials before Prefect records them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from pydantic_core import to_jsonable_python

from ..core.steps.read_recipe import check_recorded_argument

_P = ParamSpec("_P")
_R = TypeVar("_R")


class RecordedFlow(Flow[_P, _R]):
    """A flow that refuses arguments with credentials.

    Prefect sends the arguments of a call to its server, which keeps them and displays them, before it calls the
    function. A check inside the function would come too late.
    """

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as JSON data, as Prefect records them.

        Raises
        ------
        RecipeError : an argument contains credentials
        """
        for name, value in parameters.items():
            check_recorded_argument(name, value)
        try:
            return {name: to_jsonable_python(value) for name, value in parameters.items()}
        except ValueError:  # what only Prefect's encoder knows, whose import takes a while
            return super().serialize_parameters(parameters)


def recorded_flow(
    *, name: str, flow_run_name: str, validate_parameters: bool = True
) -> Callable[[Callable[_P, _R]], RecordedFlow[_P, _R]]:
    """Make a function a `RecordedFlow` whose result is not persisted; the options are those of `prefect.flow`."""

    def decorate(function: Callable[_P, _R]) -> RecordedFlow[_P, _R]:
        return RecordedFlow(
            function,
            name=name,
            flow_run_name=flow_run_name,
            validate_parameters=validate_parameters,
            persist_result=False,
        )

    return decorate
