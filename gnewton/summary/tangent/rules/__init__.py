"""The rules of the tangent engine, one module per family of operations; importing this fills the table."""

from gnewton.summary.tangent.rules import (
    bilinear,
    choices,
    elementwise,
    lengths,
    linear,
    losses,
    normalisation,
    product,
)
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.rule import RULES, TangentRule, rule, rule_of

__all__ = [
    "RULES",
    "TangentRule",
    "bilinear",
    "choices",
    "elementwise",
    "general_rule",
    "lengths",
    "linear",
    "losses",
    "normalisation",
    "product",
    "rule",
    "rule_of",
]
