"""Suggested rates: the observations against direct summaries, the solve against its first-order condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.errors import InputError
from gnewton.inspection.measurement import OptimizerDirection
from gnewton.inspection.suggestion import Observations, observe, suggest
from gnewton.partition import Partition
from gnewton.summary import summarize
from tests.optim.problems import classification, tanh_net


def repeated(hessian, gradient, third, norms, batches=5, noise=0.0):
    """B observations along directions of the given lengths, the same or with noise of mean zero."""
    wobble = noise * np.linspace(-1, 1, batches)[:, None]
    parts = (
        np.stack([gradient] * batches) + wobble * norms,
        np.stack([hessian] * batches),
        np.stack([third] * batches),
        np.stack([norms] * batches),
    )
    return Observations(*map(torch.from_numpy, parts))


HESSIAN = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
GRADIENT = np.array([1.0, 0.5, 2.0])
NORMS = np.array([0.1, 3.0, 7.0])
WHOLE = repeated(
    np.array([[HESSIAN.sum()]]), np.array([GRADIENT.sum()]), np.zeros(1), np.array([np.linalg.norm(NORMS)])
)


def test_without_third_derivatives_it_is_newton_on_the_summary():
    suggestion = suggest(
        repeated(HESSIAN, GRADIENT, np.zeros(3), NORMS),
        WHOLE,
        internal_damping=1.0,
        proximal=0.0,
        step_size=0.5,
    )
    assert suggestion.solved == pytest.approx(0.5 * np.linalg.solve(HESSIAN, GRADIENT))
    assert suggestion.rates == pytest.approx(suggestion.solved)
    assert suggestion.single == pytest.approx(0.5 * GRADIENT.sum() / HESSIAN.sum())
    assert suggestion.status == "quadratic"
    assert suggestion.low == pytest.approx(suggestion.solved)  # all batches agree
    assert suggestion.high == pytest.approx(suggestion.solved)


def test_with_them_it_satisfies_the_first_order_condition():
    third, damping = np.array([-4.0, 1.0, 9.0]), 2.0
    suggestion = suggest(
        repeated(HESSIAN, GRADIENT, third, NORMS),
        WHOLE,
        internal_damping=damping,
        proximal=0.0,
        step_size=1.0,
    )
    d = np.cbrt(np.abs(third))
    r = np.linalg.norm(d * suggestion.solved)
    assert (HESSIAN + damping / 2 * r * np.diag(d**2)) @ suggestion.solved == pytest.approx(GRADIENT)


def test_the_proximal_term_pulls_towards_the_rate_for_all():
    third, mu = np.array([-4.0, 1.0, 9.0]), 3.0
    groups = repeated(HESSIAN, GRADIENT, third, NORMS)
    suggestion = suggest(groups, WHOLE, internal_damping=1.0, proximal=mu, step_size=1.0)
    d = np.cbrt(np.abs(third))
    m = HESSIAN + 0.5 * np.linalg.norm(d * suggestion.solved) * np.diag(d**2)
    pull = mu * HESSIAN.diagonal()
    assert m @ suggestion.solved + pull * (suggestion.solved - suggestion.single) == pytest.approx(GRADIENT)
    flat = suggest(groups, WHOLE, internal_damping=0.0, proximal=1e9, step_size=1.0)
    assert flat.solved == pytest.approx([flat.single] * 3, rel=1e-6)


def test_a_group_without_a_rate_above_zero_gets_that_of_all():
    hessian = np.array([[1.0, 0.9], [0.9, 1.0]])
    gradient = np.array([1.0, 0.1])  # Newton: the second one is negative
    suggestion = suggest(
        repeated(hessian, gradient, np.zeros(2), np.ones(2), noise=0.05),
        repeated(np.array([[hessian.sum()]]), np.array([gradient.sum()]), np.zeros(1), np.ones(1)),
        internal_damping=1.0,
        proximal=0.0,
        step_size=1.0,
    )
    solved = np.linalg.solve(hessian, gradient)
    assert suggestion.solved == pytest.approx(solved)
    assert solved[1] < 0
    assert suggestion.rates == pytest.approx([solved[0], gradient.sum() / hessian.sum()])
    assert suggestion.from_solve.tolist() == [True, False]
    assert suggestion.positive.tolist() == [1.0, 0.0]
    assert (suggestion.low < suggestion.solved).all()
    assert (suggestion.solved < suggestion.high).all()


def test_a_group_at_rest_takes_no_part():
    groups = repeated(np.diag([2.0, 0.0]), np.array([1.0, 0.0]), np.zeros(2), np.array([1.0, 0.0]), batches=1)
    whole = repeated(np.array([[2.0]]), np.array([1.0]), np.zeros(1), np.ones(1), batches=1)
    assert suggest(groups, whole, internal_damping=1.0, proximal=0.0, step_size=1.0).rates == pytest.approx(
        [0.5, 0.5]
    )


def test_a_step_uphill_is_refused():
    uphill = repeated(np.array([[2.0]]), np.array([-1.0]), np.zeros(1), np.ones(1))
    with pytest.raises(InputError, match="lowers the loss at no rate"):
        suggest(uphill, uphill, internal_damping=1.0, proximal=0.0, step_size=1.0)


def test_rates_move_against_the_scale_of_a_group():
    """a_s times longer steps in a group need rates a_s times smaller; what is averaged does not change."""
    third, a = np.array([-4.0, 1.0, 9.0]), np.array([1e-3, 1.0, 50.0])
    plain = suggest(
        repeated(HESSIAN, GRADIENT, third, NORMS), WHOLE, internal_damping=1.0, proximal=0.0, step_size=1.0
    )
    scaled = repeated(HESSIAN * np.outer(a, a), GRADIENT * a, third * a**3, NORMS * a)
    suggestion = suggest(scaled, WHOLE, internal_damping=1.0, proximal=0.0, step_size=1.0)
    assert suggestion.solved == pytest.approx(plain.solved / a, rel=1e-9)


def test_observations_are_summaries_along_the_steps_of_the_optimizer():
    model = tanh_net()
    partition = Partition.per_tensor(model)
    training = [classification(20, seed) for seed in (1, 2, 3, 4)]
    curvature = [classification(30, seed) for seed in (5, 6)]
    names = [name for name, _ in model.named_parameters()]
    direction_of = OptimizerDirection(
        model, lambda named: torch.optim.SGD(named, lr=1.0, momentum=0.5), names
    )
    before = [p.detach().clone() for p in model.parameters()]
    groups, whole = observe(
        model,
        cross_entropy,
        [partition, Partition.single(model)],
        direction_of,
        iter(training),
        iter(curvature),
        batches=2,
        warmup=2,
    )
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    gradients = [
        torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())) for x, y in training
    ]
    buffer = [torch.zeros_like(p) for p in model.parameters()]
    for step, gradient in enumerate(gradients):
        buffer = [0.5 * b + g for b, g in zip(buffer, gradient, strict=True)]
        if step < 2:
            continue
        direction = dict(zip(names, buffer, strict=True))
        expected = summarize(
            model, cross_entropy, *curvature[step - 2], partition, direction, engine="reference"
        )
        n = np.array([float(u.norm()) for u in buffer])
        b = step - 2
        assert groups.norms[b].numpy() == pytest.approx(n)
        assert groups.gradient[b].numpy() == pytest.approx(expected.gradient.numpy(), rel=1e-9)
        assert groups.hessian[b].numpy() == pytest.approx(expected.hessian.numpy(), rel=1e-8, abs=1e-12)
        assert groups.third[b].numpy() == pytest.approx(expected.third.numpy(), rel=1e-7, abs=1e-12)
        assert whole.gradient[b].tolist() == pytest.approx([expected.gradient.sum().item()])
        assert whole.hessian[b].item() == pytest.approx(expected.hessian.sum().item())
