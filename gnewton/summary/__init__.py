"""Exact derivatives of the loss along a direction, summarised group by group."""

from gnewton.summary.api import Summarizer, summarize, summary_tensor
from gnewton.summary.result import Summary, SummaryError

__all__ = ["Summarizer", "Summary", "SummaryError", "summarize", "summary_tensor"]
