"""Linear operations: every coefficient passes as a tangent does, by the rules of the tangent engine.

All coefficients of all groups become the rows of one tangent. A rule of the tangent engine that reads no
adjoint is linear in what moves, or linear where the choice of an entry stays the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gnewton.summary.tangent.program import Path
from gnewton.summary.tangent.rules import rule_of
from gnewton.summary.tangent.rules.rule import OperationSite
from gnewton.summary.tangent.tangent import Rows, Tangent
from gnewton.summary.taylor.jet import Jet, joined_groups
from gnewton.summary.taylor.taylor_rule import NotApplicable, Result, SeriesSite


class _LinearSite(OperationSite):
    """A site without adjoints, for rules that are linear; the general rule, which is not, finds no entry."""

    def moving_arguments(self) -> list[tuple[Path, Tensor, Tangent]]:
        raise NotApplicable


def linear_rule(site: SeriesSite) -> Result:
    """The jets of a linear operation.

    Raises:
        NotApplicable: if the tangent engine has no linear rule for it, or not for these arguments.
    """
    rule = rule_of(site.step)
    if rule is None or rule.adjoint:
        raise NotApplicable
    present = {j: site.jets[j] for j in site.step.reads if j in site.jets}
    groups = joined_groups(*present.values())
    degree = max(jet.degree for jet in present.values())
    every = tuple(range(degree * len(groups)))
    if not every:
        raise NotApplicable
    tangents = {
        j: Tangent(Rows(every, [jet.widened(groups, degree).flatten(0, 1)], owned=False))
        for j, jet in present.items()
    }
    passed = rule.function(
        _LinearSite(site.step, site.args, site.kwargs, site.value, tangents, {}, site.sums)
    )

    def jet(tangent: Tangent | None, value: Any) -> Jet | None:
        if tangent is None:
            return None
        return Jet(value, tangent.first.merge().unflatten(0, (degree, len(groups))), groups)

    if isinstance(passed, list):
        return [jet(tangent, value) for tangent, value in zip(passed, site.value, strict=False)]
    return jet(passed, site.value)
