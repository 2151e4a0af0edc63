"""Optimizers by name, and the parts they are composed of: schedules, directions, averages,
controllers of the dampings.

A new optimizer is an :class:`OptimizerRecipe` in a module here and a YAML under configs/optimizer.
"""

from gnewton.optim.recipes.base import (
    AVERAGINGS,
    CONTROLLERS,
    DIRECTIONS,
    OPTIMIZERS,
    SCHEDULES,
    AveragingRecipe,
    ControllerRecipe,
    DirectionRecipe,
    OptimizerRecipe,
    Problem,
    ScheduleRecipe,
)

__all__ = [
    "AVERAGINGS",
    "CONTROLLERS",
    "DIRECTIONS",
    "OPTIMIZERS",
    "SCHEDULES",
    "AveragingRecipe",
    "ControllerRecipe",
    "DirectionRecipe",
    "OptimizerRecipe",
    "Problem",
    "ScheduleRecipe",
]
