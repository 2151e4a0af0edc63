"""One group: the radius is the root of a quadratic equation."""

from __future__ import annotations

import math

import numpy as np

from gnewton.cubic.certificate import curvature_margin, residual
from gnewton.cubic.problem import Problem
from gnewton.cubic.solution import CubicStatus
from gnewton.cubic.trust import TRUSTED_RESIDUAL, Candidate


def single_candidate(problem: Problem) -> Candidate | None:
    """The minimiser of a model of one group with a cubic term; None where the gradient is zero.

    With ``κ = h/d²``, ``σr² + κr = |g|/d``. Both forms of its positive root add numbers of one sign.
    """
    gradient, d = float(problem.gradient[0]), math.sqrt(problem.weights[0])
    kappa, force = float(problem.hessian[0, 0]) / d / d, abs(gradient) / d
    if force == 0.0:
        return None
    reach = abs(kappa) + math.hypot(kappa, 2.0 * math.sqrt(problem.sigma) * math.sqrt(force))
    r = 2.0 * force / reach if kappa > 0.0 else reach / (2.0 * problem.sigma)
    x, lowest = np.array([math.copysign(r / d, gradient)]), np.ones(1)
    margin = curvature_margin(problem, problem.radius(x), lowest)
    candidate = Candidate(x, CubicStatus.INTERIOR, residual(problem, x), margin, 1, lowest)
    return candidate if candidate.passes and candidate.residual <= TRUSTED_RESIDUAL else None
