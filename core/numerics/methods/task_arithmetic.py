"""Task arithmetic: base plus the weighted sum of the task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..lazy_torch import torch
from ..tensor_inputs import BlockwiseInputs

if TYPE_CHECKING:
    from ..elementwise.block_selection import BlockSelection


class TaskArithmeticParameters(CombineParameters):
    rescale: bool = Field(False, description="accepted for mergekit recipes, without effect: nothing is sparsified")
    scale: float = Field(
        1.0, description="factor on the merged delta before it is added to the base; multiplied by lambda"
    )


class TaskArithmeticExpert(SparseExpert):
    density: float = Field(1.0, description="accepted for mergekit recipes, without effect: nothing is sparsified")


class TaskArithmetic(GeneralizedTaskArithmetic[TaskArithmeticParameters, TaskArithmeticExpert]):
    """base + lambda * scale * sum_i weight_i v_i.

    Cost: one pass, two operations per entry and expert.

    References
    ----------
    Editing Models with Task Arithmetic, arXiv:2212.04089
    """

    name = "task_arithmetic"
    summary = "base plus the weighted sum of the task vectors"
    source = "arXiv:2212.04089"
    Parameters = TaskArithmeticParameters
    Expert = TaskArithmeticExpert
    elects_signs = False
    has_block_form = True

    def keep(self, delta: torch.Tensor, expert: TaskArithmeticExpert, generator: torch.Generator) -> None:
        return None

    def block_selection(
        self, inputs: BlockwiseInputs, index: int, expert: TaskArithmeticExpert, *, remember: bool
    ) -> BlockSelection:
        from ..elementwise.block_selection import KeepAll

        return KeepAll()

    def block_passes(self, parameters: TaskArithmeticParameters) -> int:
        return 1

    def block_work_bytes(self, num_elements: int, num_experts: int, element_bytes: int) -> int:
        return 0

    def factor(self, parameters: TaskArithmeticParameters) -> float:
        return parameters.lambda_ * parameters.scale
