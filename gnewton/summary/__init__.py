"""Exact derivatives of the loss along a direction, summarised group by group."""

from gnewton.summary.api import Summarizer, summarize, summary_tensor
from gnewton.summary.result import Summary, SummaryError
from gnewton.summary.taylor.derivatives import LossDerivatives, loss_derivatives

__all__ = [
    "LossDerivatives",
    "Summarizer",
    "Summary",
    "SummaryError",
    "loss_derivatives",
    "summarize",
    "summary_tensor",
]
