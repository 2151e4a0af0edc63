"""A and G against sums over single samples and positions, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import KFAC
from gnewton.optim.kfac.kronecker_blocks import rows
from gnewton.optim.kfac.patch_moments import applies, patch_moments
from gnewton.optim.kfac.statistics import Rows
from tests.optim.kfac.cases import CASES, DOUBLE, Dense, dense, fixed, labels_from


def by_sample(model: nn.Module, inputs: Tensor, deltas: Tensor, optimizer: KFAC) -> dict[str, Dense]:
    names = {module: name for name, module in model.named_modules()}
    return {
        layer.name: dense(model, [names[m] for m in layer.modules], inputs, deltas, layer.bias is not None)
        for layer in optimizer._layers
    }


def same(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-13)


def backward(model: nn.Module, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
    outputs = model(inputs)
    loss = outputs.square().mean() if targets is None else F.cross_entropy(outputs, targets)
    loss.backward()
    return outputs


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scaling", ["standard", "reference"])
def test_factors_of_a_step(name: str, scaling: str) -> None:
    model, inputs = CASES[name].make()
    deltas = labels_from(model, inputs)
    optimizer = KFAC(model, likelihood=fixed(deltas), scaling=scaling)
    wanted = by_sample(model, inputs, deltas, optimizer)
    backward(model, inputs)
    optimizer.step()
    assert list(optimizer.factors) == list(wanted)
    for layer, (a, g) in optimizer.factors.items():
        square = wanted[layer].positions ** 2 if scaling == "reference" else 1
        same(a, wanted[layer].a / square)
        same(g, wanted[layer].g * square)


@pytest.mark.parametrize("name", ["mlp", "conv", "tied", "in-place"])
def test_the_empirical_fisher_takes_the_gradients_of_the_loss(name: str) -> None:
    model, inputs = CASES[name].make()
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    deltas = model(inputs).detach().softmax(1) - F.one_hot(targets, 3)
    optimizer = KFAC(model, fisher="empirical")
    wanted = by_sample(model, inputs, deltas, optimizer)
    backward(model, inputs, targets)
    optimizer.step()
    for layer, (a, g) in optimizer.factors.items():
        same(a, wanted[layer].a)
        same(g, wanted[layer].g)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_a_batch_may_come_in_pieces(fisher: str) -> None:
    model, inputs = CASES["conv"].make()
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    deltas = model(inputs).detach().softmax(1) - F.one_hot(targets, 3)
    optimizer = KFAC(model, fisher=fisher, likelihood=fixed(*deltas.split([3, 2, 1])))
    wanted = by_sample(model, inputs, deltas, optimizer)
    for piece, labels in zip(inputs.split([3, 2, 1]), targets.split([3, 2, 1]), strict=True):
        (F.cross_entropy(model(piece), labels) * len(piece) / 6).backward()
    optimizer.step()
    for layer, (a, g) in optimizer.factors.items():
        same(a, wanted[layer].a)
        same(g, wanted[layer].g)


@pytest.mark.parametrize("start", ["first", "identity"])
def test_averages_over_steps(start: str) -> None:
    """M ← 0.9 M + 0.1 M_new every second step, from the first moments or from the identity."""
    model, _ = CASES["mlp"].make()
    inputs = torch.randn(5, 6, 4, dtype=DOUBLE)
    deltas = torch.randn(3, 6, 3, dtype=DOUBLE)
    optimizer = KFAC(model, lr=0.5, likelihood=fixed(*deltas), decay=0.9, statistics_period=2, start=start)
    expected: dict[str, tuple[Tensor, Tensor]] = {}
    for step in range(5):
        if step % 2 == 0:
            for layer, new in by_sample(model, inputs[step], deltas[step // 2], optimizer).items():
                if step == 0 and start == "first":
                    expected[layer] = new.a, new.g
                    continue
                a, g = expected.get(
                    layer, (torch.eye(len(new.a), dtype=DOUBLE), torch.eye(len(new.g), dtype=DOUBLE))
                )
                expected[layer] = 0.9 * a + 0.1 * new.a, 0.9 * g + 0.1 * new.g
        optimizer.zero_grad()
        backward(model, inputs[step])
        optimizer.step()
        for layer, (a, g) in optimizer.factors.items():
            same(a, expected[layer][0])
            same(g, expected[layer][1])


def test_moments_that_are_not_finite_change_nothing() -> None:
    model, inputs = CASES["mlp"].make()
    deltas = labels_from(model, inputs)
    optimizer = KFAC(model, lr=1e-9, statistics_period=1, likelihood=fixed(deltas, deltas, deltas))
    backward(model, inputs)
    optimizer.step()
    before = {layer: (a.clone(), g.clone()) for layer, (a, g) in optimizer.factors.items()}
    broken = inputs.clone()
    broken[2, 1] = float("nan")
    model(broken)
    optimizer.zero_grad()
    optimizer.step()
    for layer, (a, g) in optimizer.factors.items():
        assert torch.equal(a, before[layer][0])
        assert torch.equal(g, before[layer][1])


def test_a_first_batch_that_is_not_finite_is_not_where_the_averages_start() -> None:
    model, inputs = CASES["mlp"].make()
    deltas = labels_from(model, inputs)
    optimizer = KFAC(model, statistics_period=1, likelihood=fixed(deltas * float("nan"), deltas))
    wanted = by_sample(model, inputs, deltas, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs)
        optimizer.step()
    for layer, (a, g) in optimizer.factors.items():
        same(a, wanted[layer].a)
        same(g, wanted[layer].g)


@pytest.mark.parametrize("name", ["mlp", "conv", "in-place", "wide"])
def test_gradients_and_random_streams_are_left_alone(name: str) -> None:
    model, inputs = CASES[name].make()
    backward(model, inputs)
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    optimizer = KFAC(model)
    state = torch.get_rng_state()
    model(inputs)
    assert all(p.grad is None for p in model.parameters())
    optimizer.zero_grad()
    backward(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    for p, gradient in zip((p for p in model.parameters() if p.grad is not None), plain, strict=True):
        assert torch.equal(p.grad, gradient)  # type: ignore[arg-type]


def test_only_training_passes_with_gradients_of_the_own_parameters_are_watched() -> None:
    model, inputs = CASES["mlp"].make()
    deltas = labels_from(model, inputs)
    optimizer = KFAC(model, likelihood=fixed(deltas))
    others = torch.randn(9, 4, dtype=DOUBLE)
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def elsewhere() -> None:
        model.eval()
        backward(model, others)
        model.train()
        with torch.no_grad():
            model(others)
        model[0](others).sum().backward()  # a part of the model on its own
        torch.func.functional_call(model, copies, (others,)).sum().backward()
        optimizer._capture.forget_gradients()

    wanted = by_sample(model, inputs, deltas, optimizer)
    elsewhere()
    optimizer.zero_grad()
    backward(model, inputs)
    elsewhere()
    optimizer.step()
    for layer, (a, g) in optimizer.factors.items():
        same(a, wanted[layer].a)
        same(g, wanted[layer].g)


def test_between_two_updates_nothing_is_drawn() -> None:
    model, inputs = CASES["mlp"].make()
    drawn: list[int] = []

    def likelihood(outputs: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(len(drawn))
        return torch.zeros_like(outputs)

    optimizer = KFAC(model, likelihood=likelihood, statistics_period=3)
    counts = []
    for _ in range(7):
        optimizer.zero_grad()
        backward(model, inputs)
        optimizer.step()
        counts.append(len(drawn))
    assert counts == [1, 1, 1, 2, 2, 2, 3]


def test_discarded_gradients_leave_the_empirical_statistics() -> None:
    model, inputs = CASES["mlp"].make()
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    optimizer = KFAC(model, fisher="empirical")
    backward(model, inputs * 3, targets)
    optimizer.zero_grad()
    deltas = model(inputs).detach().softmax(1) - F.one_hot(targets, 3)
    wanted = by_sample(model, inputs, deltas, optimizer)
    optimizer.zero_grad()
    backward(model, inputs, targets)
    optimizer.step()
    for layer, (a, g) in optimizer.factors.items():
        same(a, wanted[layer].a)
        same(g, wanted[layer].g)


def test_only_the_first_of_two_backward_passes_counts() -> None:
    model, inputs = CASES["mlp"].make()
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    deltas = model(inputs).detach().softmax(1) - F.one_hot(targets, 3)
    optimizer = KFAC(model, fisher="empirical")
    wanted = by_sample(model, inputs, deltas, optimizer)
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    for layer, (_, g) in optimizer.factors.items():
        same(g, wanted[layer].g)


@pytest.mark.parametrize("name", ["conv", "conv-stride"])
def test_patches_come_in_pieces_of_bounded_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gnewton.optim.kfac import kronecker_blocks

    model, inputs = CASES[name].make()
    deltas = labels_from(model, inputs)
    cases: list[dict[str, Any]] = []
    for numbers in (2**26, 1):
        monkeypatch.setattr(kronecker_blocks, "PATCH_NUMBERS", numbers)
        optimizer = KFAC(model, likelihood=fixed(deltas), lr=1e-30)
        backward(model, inputs)
        optimizer.step()
        cases.append(optimizer.factors)
        optimizer.close()
    for layer in cases[0]:
        same(cases[0][layer][0], cases[1][layer][0])
        same(cases[0][layer][1], cases[1][layer][1])


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding": (2, 1)},
    "same, circular": {"padding": "same", "padding_mode": "circular"},
    "stride along rows": {"stride": (1, 2), "padding": 1},
    "dilation along rows": {"dilation": (1, 2)},
    "a column": {"kernel_size": (3, 1)},
    "as high as the image": {"kernel_size": (7, 2)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_of_patches_are_those_of_the_patches(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, **{"kernel_size": (4, 3), **CONVOLUTIONS[name]}).double()
    inputs = torch.randn(5, 2, 7, 8, dtype=DOUBLE)
    assert applies(layer, inputs)
    second, first = patch_moments(layer, inputs.to(memory_format=torch.channels_last))
    (x, _), *more = rows(layer, inputs, layer(inputs).detach())
    assert not more
    same(second, x.T @ x)
    same(first, x.sum(0))


def test_other_convolutions_are_counted_patch_by_patch() -> None:
    image = torch.zeros(1, 2, 7, 8)
    for options in ({"stride": (2, 1)}, {"dilation": (2, 1)}, {"kernel_size": (1, 3)}):
        assert not applies(nn.Conv2d(2, 3, **{"kernel_size": 3, **options}), image)  # type: ignore[arg-type]
    assert not applies(nn.Conv2d(2, 3, 3), image[0])


def test_rows_that_wait_are_copies() -> None:
    """What is written to the inputs between the passes and the step is not counted."""
    factors = []
    for changed in (False, True):
        model, inputs = CASES["wide"].make()
        optimizer = KFAC(model, likelihood=fixed(labels_from(model, inputs)), lr=1e-30)
        backward(model, inputs)
        assert isinstance(optimizer._capture.sums[optimizer._layers[0]].second_moments(1.0, 1.0)[0], Rows)
        if changed:
            inputs.zero_()
        optimizer.step()
        factors.append(optimizer.factors)
    for layer, (a, g) in factors[0].items():
        same(factors[1][layer][0], a)
        same(factors[1][layer][1], g)


def test_lower_precision_is_averaged_in_float32() -> None:
    model, inputs = CASES["mlp"].make()
    model.to(torch.bfloat16)
    optimizer = KFAC(model)
    backward(model, inputs.to(torch.bfloat16))
    optimizer.step()
    assert {a.dtype for pair in optimizer.factors.values() for a in pair} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
