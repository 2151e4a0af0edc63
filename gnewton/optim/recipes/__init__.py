"""Optimizers by name, and the parts they are composed of: schedules, directions, averages.

A new optimizer is an :class:`OptimizerRecipe` in a module here and a YAML under configs/optimizer.
"""

from gnewton.optim.recipes.base import (
    AVERAGINGS,
    DIRECTIONS,
    OPTIMIZERS,
    SCHEDULES,
    AveragingRecipe,
    DirectionRecipe,
    OptimizerRecipe,
    Problem,
    ScheduleRecipe,
)

__all__ = [
    "AVERAGINGS",
    "DIRECTIONS",
    "OPTIMIZERS",
    "SCHEDULES",
    "AveragingRecipe",
    "DirectionRecipe",
    "OptimizerRecipe",
    "Problem",
    "ScheduleRecipe",
]
