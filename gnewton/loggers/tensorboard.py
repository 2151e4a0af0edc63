"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.loggers import (
    LOGGERS,
    METRICS,
    Logger,
    LoggerRecipe,
    RunCard,
    numbers,
    rate_numbers,
    step_numbers,
)
from gnewton.options import option

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


@LOGGERS.register("tensorboard")
@dataclass(kw_only=True)
class TensorBoardRecipe(LoggerRecipe):
    """Options of the TensorBoard logger, which writes event files into ``tensorboard/`` of the run folder."""

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"

    flush_seconds: int = option(30, help="seconds between two writes to the disk", at_least=1)

    def build(self) -> Logger:
        """Build the logger; it opens its file when the run starts."""
        return TensorBoardLogger(self.flush_seconds)


class TensorBoardLogger(Logger):
    """Scalars and images through torch's writer.

    A run that is continued from a checkpoint hides the events of later steps.

    Args:
        flush_seconds: interval at which the file is flushed to the disk.
    """

    def __init__(self, flush_seconds: int) -> None:
        self._flush_seconds = flush_seconds
        self._writer: SummaryWriter | None = None

    def start(self, card: RunCard) -> None:
        """Open an event file and write the configuration into it as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(card.folder / FOLDER),
            purge_step=card.step + 1 if card.step and card.trains else None,
            flush_secs=self._flush_seconds,
        )
        if card.trains:
            lines = "\n".join(f"    {name}: {value}" for name, value in card.config.items())
            self._writer.add_text("config", lines, card.step)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Write a scalar for each column that has a value."""
        assert self._writer is not None
        for name, value in numbers(row, METRICS).items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def steps(self, row: Mapping[str, Any]) -> None:
        """Write the training loss and the learning rate."""
        assert self._writer is not None
        for name, value in step_numbers(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def rates(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a scalar for each group."""
        assert self._writer is not None
        for step, values in rate_numbers(rows).items():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, name: str, file: Path, step: int) -> None:
        """Write the image."""
        import numpy as np
        from PIL import Image

        assert self._writer is not None
        with Image.open(file) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, ended_well: bool) -> None:
        """Close the event file."""
        assert self._writer is not None
        self._writer.close()
