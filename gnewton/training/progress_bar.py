"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class ProgressBar:
    """A progress bar over training steps, or nothing if no terminal would show it.

    Args:
        style: "bar", "lines", or "auto": a bar if standard error is a terminal.
        total: training steps of the whole run; None if unknown.
        done: training steps made before.
    """

    def __init__(self, style: str, total: int | None, done: int = 0) -> None:
        shown = style == "bar" or (style == "auto" and sys.stderr.isatty())
        self._bar = tqdm(
            total=total, initial=done, unit="step", disable=not shown, dynamic_ncols=True, leave=False
        )
        # the root logger prints the lines, if any: it shall print them above the bar, not through it
        self._redirect = logging_redirect_tqdm() if shown and logging.root.handlers else None

    def __enter__(self) -> ProgressBar:
        if self._redirect is not None:
            self._redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._redirect is not None:
            self._redirect.__exit__(kind, error, trace)

    def advance(self) -> None:
        """Count one more training step; nothing is read from the device."""
        self._bar.update(1)

    def show(self, loss: float, rates: list[float]) -> None:
        """Show the latest loss and the range of the rates."""
        span = f"{min(rates):.2g}…{max(rates):.2g}" if len(rates) > 1 else f"{rates[0]:.2g}"
        self._bar.set_postfix_str(f"loss {loss:.4g}, rate {span}", refresh=False)


def learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rates in force: one per partition group, or one per parameter group of a baseline."""
    rates = getattr(optimizer, "rates", None)
    if isinstance(rates, Mapping):
        return list(rates.values())
    return [float(group["lr"]) for group in optimizer.param_groups]


def summary_line(row: Mapping[str, Any]) -> str:
    """A row of metrics.csv as one line of text."""
    parts = [f"epoch {row['epoch']:g}", f"step {row['step']}"]
    if row["running_loss"] is not None:
        parts.append(f"running loss {row['running_loss']:.4g}")
    for name in ("train", "validation", "test"):
        loss, accuracy = row[f"{name}_loss"], row[f"{name}_accuracy"]
        if loss is not None:
            parts.append(
                f"{name} {loss:.4g}" + (f" ({100 * accuracy:.2f} %)" if accuracy is not None else "")
            )
    parts.append(f"{row['train_seconds']:.2f} s")
    return ", ".join(parts)
