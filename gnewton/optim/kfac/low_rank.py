"""K-FAC with inverses of low rank: a multiple of I, and the leading eigenvectors of each factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.optim.kfac.layer_gradient import LayerGradient, LayerStep, Symmetric
from gnewton.optim.kfac.preconditioner import Explicit, Preconditioner, damped_factors, damped_inverses
from gnewton.optim.kfac.statistics import Factors

FRACTION = 0.1
"""Eigenvalues above this share of the damping of their factor are kept. Any other is replaced by the mean of
the others, which changes the inverse there by a factor between 1/(1 + FRACTION) and 1 + FRACTION."""

SMALLEST = 256
"""Size below which a factor is inverted as a whole: the products with its inverse cost next to nothing."""

_SHARE = 4
"""Products of low rank are worth it up to a rank of the size over this number."""

_FIRST = 64
"""Vectors of the first search."""

_MORE = 8
"""Random vectors that join the old ones in a search, to find what is new."""

_PATIENCE = 10
"""Refreshes until another search in a factor whose rank was too high."""


@dataclass(frozen=True)
class LowRankInverse:
    """(M + dI)⁻¹ ≈ sI − Q Diag(w) Qᵀ, from the leading eigenpairs (θ, Q) of M.

    With r pairs and the mean of the other eigenvalues ρ = (tr M − Σθ)/(n − r): s = 1/(ρ + d) and
    w = s − 1/(θ + d). It is exact if the others are equal, and with r = n.

    Attributes:
        basis: (n, b), orthonormal columns, of which the first r are Q; the others start the next search.
        weights: w, (r,).
        rest: s, a scalar.
    """

    basis: Tensor
    weights: Tensor
    rest: Tensor

    @staticmethod
    def of(matrix: Tensor, damping: Tensor, values: Tensor, basis: Tensor, kept: int) -> LowRankInverse:
        """From the first ``kept`` of the eigenvalues ``values``, which fall, and their eigenvectors."""
        leading = values[:kept]
        others = (matrix.diagonal().sum() - leading.sum()).clamp_min(0) / max(len(matrix) - kept, 1)
        rest = 1 / (others + damping)
        return LowRankInverse(basis, rest - 1 / (leading + damping), rest)

    @property
    def _vectors(self) -> Tensor:
        return self.basis[:, : len(self.weights)]

    def of_rows(self, rows: Tensor) -> Tensor:
        """X (M + dI)⁻¹: 2knr multiplications."""
        vectors = self._vectors
        return torch.addmm(rows * self.rest, (rows @ vectors).mul_(self.weights), vectors.T, alpha=-1)

    def of_columns(self, columns: Tensor) -> Tensor:
        """(M + dI)⁻¹ X: 2knr multiplications."""
        vectors = self._vectors
        inside = (vectors.T @ columns).mul_(self.weights.unsqueeze(1))
        return torch.addmm(columns * self.rest, vectors, inside, alpha=-1)


class LowRank(Preconditioner):
    """As :class:`~gnewton.optim.kfac.preconditioner.Inverses`, of low rank where that is cheaper.

    A refresh searches the eigenvectors by subspace iteration from the previous ones: two products with the
    factor, a QR decomposition and a small eigenvalue problem (Halko, Martinsson & Tropp, arXiv 0909.4061).
    """

    def __init__(self) -> None:
        self.sides: dict[str, Symmetric] = {}
        self._patience = {"a": 0, "g": 0}

    @staticmethod
    def refresh(preconditioners: Sequence[LowRank], factors: Sequence[Factors], damping: float) -> None:
        """Search the leading eigenvectors of the factors of all layers; invert those that have too many."""
        whole = []
        places = [(kept, side) for kept in preconditioners for side in ("a", "g")]
        for (kept, side), matrix, share in zip(places, *damped_factors(factors, damping), strict=True):
            found = kept._search(side, matrix, share)
            if found is None:
                whole.append((kept, side, matrix, share))
            else:
                kept.sides[side] = found
        if whole:
            inverses = damped_inverses([entry[2] for entry in whole], [entry[3] for entry in whole])
            for (kept, side, _, _), inverse in zip(whole, inverses, strict=True):
                kept.sides[side] = Explicit(inverse)

    def apply(self, gradient: LayerGradient, damping: float) -> LayerStep:
        """V, by products with the inverses."""
        return gradient.between(self.sides["g"], self.sides["a"])

    def state(self) -> dict[str, Tensor]:
        """The inverses, in the form that each has, and the refreshes until the next search."""
        state: dict[str, Tensor] = {}
        for side, inverse in self.sides.items():
            state[f"{side}_patience"] = torch.tensor(self._patience[side])
            if isinstance(inverse, Explicit):
                state[f"{side}_inverse"] = inverse.matrix
            elif isinstance(inverse, LowRankInverse):
                state[f"{side}_basis"] = inverse.basis
                state[f"{side}_weights"], state[f"{side}_rest"] = inverse.weights, inverse.rest
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the inverses."""
        self.sides = {}
        for side in ("a", "g"):
            self._patience[side] = int(state[f"{side}_patience"])
            if f"{side}_inverse" in state:
                self.sides[side] = Explicit(state[f"{side}_inverse"])
            else:
                parts = (state[f"{side}_{part}"] for part in ("basis", "weights", "rest"))
                self.sides[side] = LowRankInverse(*parts)

    def _search(self, side: str, matrix: Tensor, damping: Tensor) -> LowRankInverse | None:
        """The inverse of low rank; None if that of the whole matrix is cheaper."""
        if len(matrix) < SMALLEST:
            return None
        if self._patience[side] > 0:
            self._patience[side] -= 1
            return None
        before = self.sides.get(side)
        start = before.basis if isinstance(before, LowRankInverse) else None
        found = low_rank_inverse(matrix, damping, start)
        if found is None:
            self._patience[side] = _PATIENCE - 1
        return found


def low_rank_inverse(matrix: Tensor, damping: Tensor, start: Tensor | None) -> LowRankInverse | None:
    """The inverse from the eigenvalues above :data:`FRACTION` · damping.

    The search takes as many vectors as it needs to find one of less than half of that; each doubling of their
    number starts from those at hand. The host waits for the device once per search.

    Args:
        matrix: M, (n, n), symmetric and positive semidefinite.
        damping: d, a scalar on the device.
        start: vectors to start from, such as the basis found before, (n, b).

    Returns:
        None if more than a quarter of the eigenvalues are to be kept, or the matrix is not finite.
    """
    size = len(matrix)
    highest = size // _SHARE
    if start is None:
        block = _random(matrix, min(_FIRST, highest))
        block = _orthonormal(matrix @ block)
    else:
        block = torch.cat([start, _random(matrix, _MORE)], dim=1)
    while True:
        block = _orthonormal(matrix @ block)
        image = matrix @ block
        small = block.T @ image
        try:
            values, rotation = torch.linalg.eigh((small + small.T) / 2)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None
        values, rotation = values.flip(0), rotation.flip(1)
        block = block @ rotation
        floor = FRACTION * damping
        counts = [(values > floor).sum(), (values > floor / 2).sum(), values.isfinite().all()]
        kept, held, finite = torch.stack(counts).tolist()
        if kept > highest or not finite:
            return None
        if held < len(values) or len(values) == size:
            return LowRankInverse.of(matrix, damping, values, block[:, :held].contiguous(), kept)
        more = min(len(values), min(2 * highest, size) - len(values))
        if more <= 0:
            return None
        block = torch.cat([block, _random(matrix, more)], dim=1)


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block)[0]


def _random(matrix: Tensor, count: int) -> Tensor:
    """The same normal numbers at every call and in every process, apart from torch's own stream."""
    numbers = torch.randn(len(matrix), count, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return numbers.to(matrix)
