"""The cubic model of a summary, its certified global minimiser, and a step where there is none."""

from gnewton.cubic.solution import CubicSolution, CubicStatus
from gnewton.cubic.solve import fallback, solve_cubic

__all__ = ["CubicSolution", "CubicStatus", "fallback", "solve_cubic"]
