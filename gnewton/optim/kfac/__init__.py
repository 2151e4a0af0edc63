"""K-FAC: natural gradient with Kronecker-factored curvature, one factor for the inputs of a layer and one for
the gradients of its outputs. The optimizer is :class:`KFAC`; docs/optimizers.md has the formulas.
"""

from gnewton.optim.kfac.optimizer import KFAC

__all__ = ["KFAC"]
