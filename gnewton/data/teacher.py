"""Regression on what a random network answers: as many samples and as hard as one likes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.data.recipe import DATA
from gnewton.data.teacher_options import TeacherOptions

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@DATA.register("teacher")
@dataclass(kw_only=True)
class Teacher(TeacherOptions):
    """Standard Gaussian inputs; targets from a multi-layer perceptron with random weights, plus noise."""

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`. Inputs (inputs,), targets (outputs,) of mean square about one."""
        from gnewton.data.memory.teacher_samples import build_teacher_set

        return build_teacher_set(self, device, dtype, seed)
