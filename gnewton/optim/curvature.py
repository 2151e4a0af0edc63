"""The batches on which curvature is measured, restarted when they are exhausted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gnewton.errors import InputError

Batch = tuple[Any, Any]
"""(inputs, targets)."""


class CurvatureBatches:
    """An endless supply of (inputs, targets), or, without a source, the training batch in hand.

    Args:
        source: an iterable of batches, or None.
        per_update: how many are taken at each update of the rates.
        whole: whether a batch may be anything: it is then handed out as (batch, None).

    Raises:
        InputError: if the source is no iterable, or several are to be taken and there is none.
    """

    def __init__(self, source: Iterable[Any] | None, per_update: int = 1, *, whole: bool = False) -> None:
        if source is not None and not isinstance(source, Iterable):
            raise InputError(f"curvature=<{type(source).__name__}>: must be an iterable of batches")
        if source is None and per_update > 1:
            raise InputError("averaging over several batches at each update: needs curvature=")
        self._source = source
        self._per_update = per_update
        self._whole = whole
        self._iterator: Iterator[Any] | None = None

    def next(self, training: Any) -> Batch:
        """The next batch of the source; ``training`` where there is no source.

        Raises:
            InputError: if there is neither, the source holds no batch, or a batch is not what it should be.
        """
        if self._source is None:
            if training is None:
                raise InputError(
                    "step: curvature is due; pass batch=(inputs, targets) or build with curvature="
                )
            return self._pair(training, "batch")
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._source)
            found = next(self._iterator, None)
            if found is not None:
                return self._pair(found, "curvature")
            self._iterator = None  # exhausted: start over
        raise InputError("curvature: the iterable holds no batch")

    def _pair(self, batch: Any, name: str) -> Batch:
        if self._whole:
            return batch, None
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        of = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise InputError(
            f"{name}: a batch must be (inputs, targets), not a {type(batch).__name__}{of}; several inputs go "
            "as ((a, b), targets) or (dict, targets), any other batch with forward="
        )

    def for_update(self, training: Any) -> list[Batch]:
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
