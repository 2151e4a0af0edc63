"""Both engines agree to rounding on every network of the zoo, for every kind of partition."""

from __future__ import annotations

import pytest
import torch

from gnewton.summary import summarize
from tests.thorough import THOROUGH

from . import oracles, zoo


def difference(a, b):
    return (a - b).norm().item() / max(b.norm().item(), 1e-12)


def differences(a, b):
    pairs = [(a.loss, b.loss), (a.gradient, b.gradient), (a.hessian, b.hessian), (a.third, b.third)]
    return [difference(x, y) for x, y in pairs if x is not None]


LONG = ("functions", "reductions", "views", "reuse")
"""Networks of dozens of operations; what a kind of partition changes is shown by the others."""


@pytest.mark.parametrize("name", zoo.CASES)
def test_engines_agree_in_double_precision(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partitions = zoo.partitions(model)
    kinds = ("per_tensor", "alternate") if name in LONG and not THOROUGH else partitions
    for kind in kinds:
        partition = partitions[kind]
        fast = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
        slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
        assert max(differences(fast, slow)) < 1e-10, kind
        assert torch.equal(fast.hessian, fast.hessian.T)


@pytest.mark.parametrize("name", zoo.DISTINCT)
def test_engines_agree_in_single_precision(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name, torch.float32)
    partition = zoo.partitions(model)["per_tensor"]
    fast = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
    assert max(differences(fast, slow)) < 1e-4
    assert fast.hessian.dtype == torch.float64


# their value at θ + u is not what is differentiated: a padding row and detached values do not move
DETACHED = ("tied_embedding", "detached")
# a kink lies within every step that is long enough for a third derivative
KINKED = ("pooling", "group_norm", "instance_norm", *(n for n in zoo.CASES if n.startswith("batch_norm")))


@pytest.mark.parametrize("name", [n for n in zoo.CASES if n not in DETACHED])
def test_agrees_with_finite_differences(name):
    """ḡ and H̄ along two directions of ε, D3 along every axis; the longest step between two kinks is best."""
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partition = zoo.partitions(model)["per_tensor"]
    summary = summarize(model, loss_fn, inputs, targets, partition, direction, engine="tangent")
    state = torch.get_rng_state()

    def errors(axis, expected):
        """Of the three derivatives of t ↦ φ(t · axis), the smallest over the steps."""

        def phi(t):
            torch.set_rng_state(state)  # the same dropout masks at every point
            with torch.no_grad():
                return oracles.phi(model, loss_fn, inputs, targets, partition, direction, t * axis).item()

        differences_of_phi = torch.tensor(
            [oracles.along(phi, step) for step in (2e-3, 3e-4, 1e-4, 3e-5)], dtype=torch.float64
        )
        return (differences_of_phi - torch.stack(expected)).abs().amin(0).tolist()

    size, generator = len(partition), torch.Generator().manual_seed(2)
    for _ in range(2):
        axis = torch.randn(size, generator=generator, dtype=torch.float64) / size**0.5
        expected = [summary.gradient @ axis, axis @ summary.hessian @ axis, summary.loss]
        first, second, _ = errors(axis, expected)
        exact = name not in KINKED
        assert first < (1e-9 if exact else 1e-3) * summary.gradient.norm()
        assert second < (1e-6 if exact else 1e-1) * summary.hessian.norm()
    if exact:
        axes = torch.eye(size, dtype=torch.float64)
        for s in range(size):
            expected = [summary.gradient[s], summary.hessian[s, s], summary.third[s]]
            assert errors(axes[s], expected)[2] < 1e-3 * summary.third.norm()
