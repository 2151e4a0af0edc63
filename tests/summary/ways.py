"""Gauss–Newton summaries by a way that the test chooses."""

from __future__ import annotations

from typing import Any

from gnewton.summary import Summarizer, Summary


def summarizer_by(way: str, model: Any, loss_fn: Any, partition: Any, **options: Any) -> Summarizer:
    """A summarizer of Gauss–Newton matrices by ``rows``, ``tangents`` or, as ``auto``, the cheaper."""
    summarizer = Summarizer(model, loss_fn, partition, curvature="gauss_newton", engine="tangent", **options)
    summarizer.tangent_engine.way = way  # type: ignore[attr-defined]
    return summarizer


def by(way: str, arguments: Any) -> tuple[Summary, str]:
    """The summary of (model, loss, inputs, targets, partition, direction), and the way it was computed."""
    model, loss_fn, inputs, targets, partition, direction = arguments
    summarizer = summarizer_by(way, model, loss_fn, partition)
    summary = summarizer.summarize(inputs, targets, direction)
    return summary, summarizer.tangent_engine.last_way  # type: ignore[attr-defined]
