"""The batches on which curvature is measured, restarted when they are exhausted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gnewton.errors import InputError

Batch = tuple[Any, Any]


class CurvatureBatches:
    """An endless supply of (inputs, targets), or, without a source, the training batch in hand.

    Args:
        source: an iterable of batches, or None.
        per_update: how many are taken at each update of the rates.

    Raises:
        InputError: if several are to be taken and there is no source.
    """

    def __init__(self, source: Iterable[Batch] | None, per_update: int = 1) -> None:
        if source is None and per_update > 1:
            raise InputError("averaging over several batches at each update: needs curvature=")
        self._source = source
        self._per_update = per_update
        self._iterator: Iterator[Batch] | None = None

    def next(self, training: Batch | None) -> Batch:
        """The next batch of the source; ``training`` where there is no source.

        Raises:
            InputError: if there is neither, or the source holds no batch.
        """
        if self._source is None:
            if training is None:
                raise InputError(
                    "step: curvature is due; pass batch=(inputs, targets) or build with curvature="
                )
            return training
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._source)
            found = next(self._iterator, None)
            if found is not None:
                return found
            self._iterator = None  # exhausted: start over
        raise InputError("curvature: the iterable holds no batch")

    def for_update(self, training: Batch | None) -> list[Batch]:
        """The batches of one update, see :meth:`next`."""
        return [self.next(training) for _ in range(self._per_update)]

    @property
    def position(self) -> int | None:
        """Batches handed out so far, where the source can tell and seek; else None."""
        return getattr(self._source, "position", None)

    def seek(self, position: int | None) -> None:
        """Continue after ``position`` batches, where the source can seek."""
        self._iterator = None
        if position is not None and hasattr(self._source, "position"):
            self._source.position = position  # type: ignore[union-attr]
