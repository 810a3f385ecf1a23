"""Machine models: the built-in ones, and what a file may contain."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from eigenmerge.core.planning.cost.machines import MACHINES, MachineModel


@pytest.mark.parametrize("name", MACHINES)
def test_a_built_in_machine_survives_a_file(name: str) -> None:
    machine = MACHINES[name]
    assert machine.name == name
    assert machine.source.startswith(("measured", "assumed"))
    assert MachineModel.model_validate_json(machine.model_dump_json()) == machine


@pytest.mark.parametrize(
    "change", [{"matmul_flops": 0}, {"read_bandwidth": -1}, {"memory_bytes": 0}, {"source": None}, {"flops": 1}]
)
def test_rates_are_positive_and_unknown_fields_are_refused(change: dict[str, object]) -> None:
    fields = MACHINES["cpu-2core"].model_dump() | change
    with pytest.raises(ValidationError):
        MachineModel.model_validate(fields)
