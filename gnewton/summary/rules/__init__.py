"""The rules of the tangent engine, one module per family of operations; importing this fills the table."""

from gnewton.summary.rules import (
    convolution,
    elementwise,
    linear,
    losses,
    matrix,
    normalisation,
    pooling,
    product,
    softmax,
)
from gnewton.summary.rules.general import general_rule
from gnewton.summary.rules.table import RULES, Rule, rule

__all__ = [
    "RULES",
    "Rule",
    "convolution",
    "elementwise",
    "general_rule",
    "linear",
    "losses",
    "matrix",
    "normalisation",
    "pooling",
    "product",
    "rule",
    "softmax",
]
