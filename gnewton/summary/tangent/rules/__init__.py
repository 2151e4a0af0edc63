"""The rules of the tangent engine, one module per family of operations; importing this fills the table."""

from gnewton.summary.tangent.rules import (
    bilinear,
    elementwise,
    linear,
    losses,
    normalisation,
    product,
    reductions,
)
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.rule import RULES, TangentRule, rule, rule_of

__all__ = [
    "RULES",
    "TangentRule",
    "bilinear",
    "elementwise",
    "general_rule",
    "linear",
    "losses",
    "normalisation",
    "product",
    "reductions",
    "rule",
    "rule_of",
]
