"""Inverses of low rank against those of whole matrices, in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gnewton import KFAC
from gnewton.errors import GnewtonError
from gnewton.optim.kfac import low_rank
from gnewton.optim.kfac.low_rank import FRACTION, LowRankInverse, low_rank_inverse
from gnewton.optim.kfac.preconditioner import Explicit
from tests.optim.kfac.cases import CASES, DOUBLE
from tests.optim.problems import flat, take_step

SIZE = 80
DAMPING = torch.tensor(0.5, dtype=DOUBLE)
EYE = torch.eye(SIZE, dtype=DOUBLE)


def spectrum(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and its eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=DOUBLE, generator=generator))[0]
    return (vectors * values) @ vectors.T, vectors


def falling(count: int, lowest: float = 1e-4) -> Tensor:
    """``count`` eigenvalues above FRACTION · damping, from 50 down, and others that fall below half of it."""
    floor = float(FRACTION * DAMPING)
    above = torch.logspace(0, 1, count, base=1.2 * floor / 50, dtype=DOUBLE) * 50
    below = torch.logspace(0, 1, SIZE - count, base=lowest, dtype=DOUBLE) * floor * 0.8
    return torch.cat([above, below])


def search(matrix: Tensor, start: Tensor | None = None) -> LowRankInverse:
    inverse = low_rank_inverse(matrix, DAMPING, start)
    assert inverse is not None
    return inverse


def exact(matrix: Tensor) -> Tensor:
    return torch.linalg.inv(matrix + DAMPING * EYE)


def whole(inverse: LowRankInverse) -> Tensor:
    return inverse.of_rows(EYE)


@pytest.mark.parametrize("count", [0, 1, 7, 18])
def test_every_direction_keeps_its_inverse_within_the_bound(count: int) -> None:
    """Relative to (M + dI)⁻¹ itself: the eigenvalues of its quotient with ours, from within the bound."""
    matrix, _ = spectrum(falling(count))
    inverse = search(matrix)
    assert len(inverse.weights) == count
    quotient = torch.linalg.eigvals(whole(inverse) @ (matrix + DAMPING * EYE)).real
    assert float(quotient.max()) <= (1 + FRACTION) * 1.001
    assert float(quotient.min()) >= 0.999 / (1 + FRACTION)
    kept = torch.linalg.eigvalsh(matrix)[SIZE - count :].clamp_min(0)
    ours = 1 / (inverse.rest - inverse.weights) - DAMPING
    torch.testing.assert_close(ours.flip(0), kept, rtol=1e-3, atol=1e-3 * float(FRACTION * DAMPING))
    orthogonal = inverse.basis.T @ inverse.basis
    torch.testing.assert_close(orthogonal, torch.eye(len(orthogonal), dtype=DOUBLE), rtol=1e-12, atol=1e-12)
    assert float(whole(inverse).diagonal().sum()) == pytest.approx(float(exact(matrix).trace()), rel=0.02)


def test_equal_eigenvalues_below_leave_no_error() -> None:
    values = torch.full((SIZE,), 0.02, dtype=DOUBLE)
    values[:6] = torch.tensor([40.0, 20.0, 3.0, 3.0, 1.0, 0.5], dtype=DOUBLE)
    matrix, _ = spectrum(values)
    inverse = search(matrix)
    for _ in range(6):  # from the basis found before, until it has converged
        inverse = search(matrix, inverse.basis)
    torch.testing.assert_close(whole(inverse), exact(matrix), rtol=1e-8, atol=1e-8)


@pytest.fixture
def full_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eigenvector is kept, of factors of every size."""
    for name, value in (("FRACTION", -1.0), ("_SHARE", 1), ("SMALLEST", 0)):
        monkeypatch.setattr(low_rank, name, value)


def test_the_full_rank_is_exact(full_rank: None) -> None:
    matrix, _ = spectrum(falling(18))
    inverse = search(matrix)
    assert len(inverse.weights) == SIZE
    torch.testing.assert_close(whole(inverse), exact(matrix), rtol=1e-10, atol=1e-11)


def test_products_from_both_sides() -> None:
    inverse = search(spectrum(falling(7))[0])
    x = torch.randn(3, SIZE, dtype=DOUBLE)
    dense = whole(inverse)
    torch.testing.assert_close(dense, dense.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inverse.of_rows(x), x @ dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inverse.of_columns(x.T), dense @ x.T, rtol=1e-12, atol=1e-12)


def test_a_search_finds_what_is_new() -> None:
    """The new eigenvector is orthogonal to every vector that the search starts from but the random ones."""
    values = falling(5)
    matrix, vectors = spectrum(values)
    inverse = search(matrix)
    stranger = vectors[:, -1] - inverse.basis @ (inverse.basis.T @ vectors[:, -1])
    stranger /= stranger.norm()
    grown = matrix + 3 * torch.outer(stranger, stranger)
    later = search(grown, inverse.basis)
    assert len(later.weights) == 6
    held = later.basis[:, :6]
    assert float((held.T @ stranger).norm()) == pytest.approx(1, abs=1e-3)


def test_a_matrix_of_high_rank_is_left_to_the_whole_inverse() -> None:
    assert low_rank_inverse(spectrum(falling(21))[0], DAMPING, None) is None
    assert low_rank_inverse(EYE * torch.nan, DAMPING, None) is None


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "SMALLEST", 0)


def training(preconditioner: str, case: str = "wide", **options: float) -> tuple[nn.Module, KFAC]:
    torch.manual_seed(0)
    model = CASES[case].build()
    settings = {"lr": 0.05, "statistics_period": 2, "inverse_period": 3, "damping": 0.03, **options}
    return model, KFAC(model, preconditioner=preconditioner, seed=5, **settings)  # type: ignore[arg-type]


def advance(model: nn.Module, optimizer: KFAC, first: int, last: int, case: str = "wide") -> Tensor:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(6, *CASES[case].shape, dtype=DOUBLE, generator=generator)
        targets = torch.randint(0, 3, (6,), generator=generator)
        take_step(model, optimizer, (inputs, targets))
    return flat(model)


def forms(optimizer: KFAC) -> set[str]:
    kept = optimizer._curvature.preconditioners.values()
    return {type(side).__name__ for preconditioner in kept for side in preconditioner.sides.values()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", ["wide", "conv", "no-bias"])
def test_a_trajectory_of_full_rank_is_that_of_the_inverses(full_rank: None, case: str) -> None:
    ours, theirs = training("low_rank", case), training("inverse", case)
    actual, wanted = advance(*ours, 0, 9, case), advance(*theirs, 0, 9, case)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)
    assert forms(ours[1]) == {"LowRankInverse"}


def test_small_factors_are_inverted_as_a_whole() -> None:
    ours, theirs = training("low_rank"), training("inverse")
    assert torch.equal(advance(*ours, 0, 9), advance(*theirs, 0, 9))
    assert forms(ours[1]) == {"Explicit"}


def test_a_step_is_within_the_bound_of_both_sides(every_size: None) -> None:
    """‖V − V_exact‖ ≤ ((1 + FRACTION)² − 1) ‖V_exact‖ and what the search has left."""
    steps = []
    for kind in ("low_rank", "inverse"):
        model, optimizer = training(kind, lr=1.0, damping=3.0, momentum=0.0)
        before = copy.deepcopy(model.state_dict())
        advance(model, optimizer, 0, 1)
        steps.append({name: before[name] - p.detach() for name, p in model.named_parameters()})
        if kind == "low_rank":
            assert forms(optimizer) == {"Explicit", "LowRankInverse"}
    for name, wanted in steps[1].items():
        error = float((steps[0][name] - wanted).norm() / wanted.norm())
        assert error <= (1 + FRACTION) ** 2 - 1
    assert any(not torch.equal(steps[0][name], wanted) for name, wanted in steps[1].items())


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_restored_optimizer_continues_bit_for_bit(every_size: None, stop: int, tmp_path: Path) -> None:
    straight, first = training("low_rank", damping=3.0)
    wanted = advance(straight, first, 0, 14)
    assert forms(first) == {"Explicit", "LowRankInverse"}
    model, optimizer = training("low_rank", damping=3.0)
    advance(model, optimizer, 0, stop)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    resumed, other = training("low_rank", damping=3.0)
    advance(resumed, other, 20, 23)
    saved = torch.load(tmp_path / "state.pt")
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert torch.equal(advance(resumed, other, stop, 14), wanted)


def test_after_a_search_in_vain_the_next_comes_ten_refreshes_later(
    every_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def in_vain(matrix: Tensor, damping: Tensor, start: Tensor | None) -> None:
        tried.append(len(matrix))

    monkeypatch.setattr(low_rank, "low_rank_inverse", in_vain)
    model, optimizer = training("low_rank", inverse_period=1)
    counts = []
    for step in range(12):
        advance(model, optimizer, step, step + 1)
        counts.append(len(tried))
    assert counts == [6] * 10 + [12] * 2
    assert forms(optimizer) == {"Explicit"}


def test_a_factor_that_vanishes_is_a_multiple_of_the_identity() -> None:
    inverse = search(torch.zeros(SIZE, SIZE, dtype=DOUBLE))
    torch.testing.assert_close(whole(inverse), EYE / DAMPING)


def test_a_factor_beyond_repair_is_an_error(every_size: None) -> None:
    model, optimizer = training("low_rank", inverse_period=1)
    advance(model, optimizer, 0, 1)
    for factors in optimizer._curvature.factors.values():
        factors.a.mul_(-1e9)
    with pytest.raises(GnewtonError, match="K-FAC: a factor is not positive definite even with 1e"):
        advance(model, optimizer, 1, 2)


def test_explicit_matrices_multiply_from_both_sides() -> None:
    matrix = spectrum(falling(7))[0]
    x = torch.randn(3, SIZE, dtype=DOUBLE)
    assert torch.equal(Explicit(matrix).of_rows(x), x @ matrix)
    assert torch.equal(Explicit(matrix).of_columns(x.T), matrix @ x.T)
