"""V against one dense solve with a Kronecker product per layer, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gnewton import KFAC
from gnewton.errors import GnewtonError
from gnewton.optim.kfac.layer_gradient import DenseGradient, LowRankGradient
from gnewton.optim.kfac.preconditioner import damped_inverses, split_damping
from gnewton.optim.kfac.statistics import Factors
from tests.optim.kfac.cases import CASES, DOUBLE, dense, fixed, joined, labels_from, pi

EYE = lambda size: torch.eye(size, dtype=DOUBLE)  # noqa: E731
DAMPING = 0.2


def inverse(a: Tensor, g: Tensor, gradient: Tensor) -> Tensor:
    """((G + √λ/π I) ⊗ (A + π√λ I))⁻¹ vec ∇W, rows first."""
    split = pi(a, g)
    matrix = torch.kron(g + DAMPING**0.5 / split * EYE(len(g)), a + split * DAMPING**0.5 * EYE(len(a)))
    return torch.linalg.solve(matrix, gradient.flatten()).view_as(gradient)


def eigen(a: Tensor, g: Tensor, gradient: Tensor) -> Tensor:
    """(G ⊗ A + λI)⁻¹ vec ∇W."""
    matrix = torch.kron(g, a) + DAMPING * EYE(gradient.numel())
    return torch.linalg.solve(matrix, gradient.flatten()).view_as(gradient)


FORMULAS = {"inverse": inverse, "low_rank": inverse, "eigen": eigen, "ekfac": eigen}
LAYERED = ["mlp", "no-bias", "frozen-bias", "wide", "positions", "tied", "conv", "conv-all", "conv1d"]


def one_step(
    name: str, preconditioner: str, **options: Any
) -> tuple[KFAC, dict[str, Tensor], dict[str, Tensor]]:
    """One step of lr 1 without clip: the gradients, and how far every parameter went."""
    model, inputs = CASES[name].make()
    optimizer = KFAC(
        model,
        lr=1.0,
        damping=DAMPING,
        kl_clip=None,
        preconditioner=preconditioner,
        likelihood=fixed(labels_from(model, inputs)),
        **options,
    )
    model(inputs).square().mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    gradients = {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}
    optimizer.step()
    return optimizer, gradients, {n: before[n] - p.detach() for n, p in trained.items()}


@pytest.mark.parametrize("preconditioner", FORMULAS)
@pytest.mark.parametrize("name", LAYERED)
def test_first_step(name: str, preconditioner: str) -> None:
    optimizer, gradients, steps = one_step(name, preconditioner)
    for layer in optimizer._layers:
        a, g = optimizer.factors[layer.name]
        bias = layer.bias_name
        gradient = joined(gradients[layer.weight_name], gradients[bias] if bias else None)
        step = joined(steps[layer.weight_name], steps[bias] if bias else None)
        wanted = FORMULAS[preconditioner](a, g, gradient)
        torch.testing.assert_close(step, wanted, rtol=1e-8, atol=1e-11)


def test_few_samples_take_the_products_by_rows() -> None:
    """What test_first_step checks for "wide" is both forms."""
    model, inputs = CASES["wide"].make()
    optimizer = KFAC(model)
    model(inputs).square().mean().backward()
    kinds = [type(optimizer._gradient(layer)) for layer in optimizer._layers]
    assert kinds == [LowRankGradient, LowRankGradient, DenseGradient]


def by_rows(model: nn.Module, optimizer: KFAC) -> list[bool]:
    return [isinstance(optimizer._gradient(layer), LowRankGradient) for layer in optimizer._layers]


CHANGES = {
    "clipped": lambda p: nn.utils.clip_grad_norm_([p], 1e-3),
    "clamped": lambda p: p.grad.clamp_(-1e-3, 1e-3),
    "replaced": lambda p: setattr(p, "grad", p.grad * 2),
    "decayed": lambda p: p.grad.add_(p.detach()),
    "copied": lambda p: setattr(p, "grad", p.grad.clone()),
    "scaled behind autograd's back": lambda p: p.grad.data.mul_(0.5),
    "clamped behind autograd's back": lambda p: p.grad.data.clamp_(-1e-3, 1e-3),
    "one entry written as an array": lambda p: p.grad.numpy().ravel().__setitem__(1, 0.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_gradient_that_was_changed_is_taken_as_it_stands(change: str, kind: str) -> None:
    model, inputs = CASES["wide"].make()
    optimizer = KFAC(model)
    model(inputs).square().mean().backward()
    assert by_rows(model, optimizer) == [True, True, False]
    with torch.no_grad():
        CHANGES[change](getattr(model[0], kind))  # type: ignore[index]
    assert by_rows(model, optimizer) == [False, True, False]


def test_a_penalty_in_the_loss_or_a_second_backward_pass_is_noticed() -> None:
    model, inputs = CASES["wide"].make()
    optimizer = KFAC(model)
    (model(inputs).square().mean() + model[0].weight.square().sum()).backward()  # type: ignore[index,operator]
    assert by_rows(model, optimizer) == [False, True, False]
    model(inputs).square().mean().backward()
    assert by_rows(model, optimizer) == [False, False, False]
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    assert by_rows(model, optimizer) == [True, True, False]


def test_autocast_takes_gradients_as_they_stand() -> None:
    """A gradient scaler writes to them behind autograd's back."""
    model, inputs = CASES["wide"].make()
    model.float()
    optimizer = KFAC(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs.float()).square().mean()
    loss.backward()
    assert by_rows(model, optimizer) == [False, False, False]


@pytest.mark.parametrize("bias", [True, False])
def test_sandwich_of_both_forms(bias: bool) -> None:
    torch.manual_seed(1)
    x, g = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    left, right = torch.randn(3, 3, dtype=DOUBLE), torch.randn(4 + bias, 4 + bias, dtype=DOUBLE)
    full = DenseGradient.of(g.T @ x, g.sum(0) if bias else None)
    wanted = left.T @ full.matrix @ right
    for form in (full, LowRankGradient(x, g, bias)):
        p, q = form.sandwich(left, right)
        torch.testing.assert_close(p @ q, wanted, rtol=1e-12, atol=1e-13)


def factors(a: Tensor, g: Tensor) -> Factors:
    layer = CASES["mlp"].make()[0]
    pair = Factors(KFAC(layer)._layers[0], 0.95, identity=False)
    pair.a, pair.g = a, g
    return pair


def test_damping_is_split_by_pi() -> None:
    a, g = torch.diag(torch.tensor([8.0, 0.0])).double(), torch.diag(torch.tensor([1.0, 0.5, 0.0])).double()
    for_a, for_g = split_damping(factors(a, g), 0.09)
    split = (4 / 0.5) ** 0.5
    assert float(for_a) == pytest.approx(split * 0.3, rel=1e-14)
    assert float(for_g) == pytest.approx(0.3 / split, rel=1e-14)


@pytest.mark.parametrize("empty", ["a", "g", "both"])
def test_where_a_factor_vanishes_damping_is_split_evenly(empty: str) -> None:
    a = torch.zeros(2, 2, dtype=DOUBLE) if empty in ("a", "both") else EYE(2)
    g = torch.zeros(3, 3, dtype=DOUBLE) if empty in ("g", "both") else EYE(3)
    assert [float(part) for part in split_damping(factors(a, g), 0.09)] == pytest.approx([0.3, 0.3])


def test_a_matrix_a_little_indefinite_gets_more_damping() -> None:
    good, bad = EYE(3), torch.diag(torch.tensor([1.0, -0.005, 2.0], dtype=DOUBLE))
    damping = torch.tensor(0.001, dtype=DOUBLE)
    inverses = damped_inverses([good, bad], [damping, damping])
    torch.testing.assert_close(inverses[0], EYE(3) / 1.001)
    torch.testing.assert_close(inverses[1], torch.linalg.inv(bad + 0.01 * EYE(3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [-1e9, float("nan")])
def test_a_matrix_beyond_repair_is_an_error(value: float) -> None:
    damping = torch.tensor(0.001, dtype=DOUBLE)
    with pytest.raises(GnewtonError, match="K-FAC: a factor is not positive definite even with 1e"):
        damped_inverses([EYE(3) * value], [damping])


def test_ekfac_averages_squares_of_single_gradients_in_the_eigenbasis() -> None:
    """V = Q_G [(Q_Gᵀ ∇W Q_A)/(s + λ)] Q_Aᵀ; s ← 0.9 s + 0.1 (1/N) Σ_n (Q_Gᵀ ∇W_n Q_A)², from d_G d_Aᵀ on."""
    for name in ("mlp", "positions", "conv-all"):
        model, inputs = CASES[name].make()
        deltas = labels_from(model, inputs)
        later = labels_from(model, inputs, seed=8)
        optimizer = KFAC(
            model,
            lr=1e-30,
            damping=DAMPING,
            kl_clip=None,
            decay=0.9,
            statistics_period=1,
            inverse_period=2,
            preconditioner="ekfac",
            likelihood=fixed(deltas, later, deltas),
        )
        names = {module: name for name, module in model.named_modules()}

        def advance() -> None:
            optimizer.zero_grad()  # noqa: B023
            model(inputs).square().mean().backward()  # noqa: B023
            optimizer.step()  # noqa: B023

        advance()
        preconditioners = optimizer._curvature.preconditioners
        for layer in optimizer._layers:
            kept = preconditioners[layer]
            a, g = optimizer.factors[layer.name]
            torch.testing.assert_close(
                kept.scale, torch.outer(torch.linalg.eigvalsh(g), torch.linalg.eigvalsh(a)).clamp_min(0),
                rtol=1e-9, atol=1e-12,
            )  # fmt: skip
        scales = {layer: preconditioners[layer].scale.clone() for layer in optimizer._layers}
        advance()
        for layer in optimizer._layers:
            kept = preconditioners[layer]
            has_bias = layer.bias is not None
            samples = dense(model, [names[m] for m in layer.modules], inputs, later, has_bias)
            rotated = [kept.outputs.T @ one @ kept.inputs for one in samples.gradients]
            squares = torch.stack(rotated).square().mean(0)
            wanted = 0.9 * scales[layer] + 0.1 * squares
            torch.testing.assert_close(kept.scale, wanted, rtol=1e-10, atol=1e-13)
            weight, bias = layer.weight.grad, layer.bias.grad if layer.bias is not None else None
            assert weight is not None
            gradient = joined(weight, bias)
            basis = torch.kron(kept.outputs, kept.inputs)
            matrix = basis @ torch.diag(wanted.flatten() + DAMPING) @ basis.T
            solved = torch.linalg.solve(matrix, gradient.flatten()).view_as(gradient)
            step = kept.apply(DenseGradient.of(weight, bias), DAMPING)
            torch.testing.assert_close(
                joined(*step.parts()), solved.view(len(solved), -1), rtol=1e-8, atol=1e-11
            )
        advance()  # a new basis: the scale starts over
        for layer in optimizer._layers:
            a, g = optimizer.factors[layer.name]
            scale = torch.outer(torch.linalg.eigvalsh(g), torch.linalg.eigvalsh(a)).clamp_min(0)
            torch.testing.assert_close(preconditioners[layer].scale, scale, rtol=1e-9, atol=1e-12)


def test_squares_of_single_gradients_come_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from gnewton.optim.kfac import statistics

    scales = []
    for numbers in (2**25, 1):
        monkeypatch.setattr(statistics, "_SQUARES_NUMBERS", numbers)
        model, inputs = CASES["conv"].make()
        deltas = labels_from(model, inputs)
        likelihood = fixed(deltas, deltas)
        optimizer = KFAC(model, lr=1e-30, statistics_period=1, preconditioner="ekfac", likelihood=likelihood)
        for _ in range(2):
            model(inputs).square().mean().backward()
            optimizer.step()
        scales.append([kept.scale for kept in optimizer._curvature.preconditioners.values()])
    for one, other in zip(*scales, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
