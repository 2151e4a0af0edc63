"""Dampings that stay as they are."""

from __future__ import annotations

from gnewton.optim.damping.controller import Controller, Site
from gnewton.optim.rates import Proposal


class Constant(Controller):
    """λ_1 and λ_int at the values of the options."""

    def settle(self, site: Site) -> Proposal:
        """The rates at these dampings."""
        return site.propose(1.0, 1.0)
