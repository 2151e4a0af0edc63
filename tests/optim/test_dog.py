"""DoG: its steps and its average are those of the formulas, and it continues from its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.errors import InputError
from gnewton.optim.dog import DoG
from gnewton.optim.options import OPTIMIZERS
from tests.optim.options.test_baselines import problem_for
from tests.optim.problems import classification, tanh_net
from tests.recipes import recipe


def backward(model):
    inputs, targets = classification(60)
    model.zero_grad()
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    return loss


def vector(tensors):
    return [value for tensor in tensors for value in tensor.detach().flatten().tolist()]


def length(values):
    return math.sqrt(math.fsum(value * value for value in values))


def by_hand(model, steps, *, factor, initial, eps, decay):
    """The iterates and the averages after every step, as lists of numbers."""
    parameters = list(model.parameters())
    start = vector(parameters)
    reach, energy, average = initial * (1 + length(start)), eps, start
    for count in range(1, steps + 1):
        backward(model)
        here = vector(parameters)
        gradient = [g + decay * x for g, x in zip(vector(p.grad for p in parameters), here, strict=True)]
        reach = max(reach, length([x - s for x, s in zip(here, start, strict=True)]))
        energy += length(gradient) ** 2
        rate = factor * reach / math.sqrt(energy)
        new = [x - rate * g for x, g in zip(here, gradient, strict=True)]
        average = [a + 9 / (count + 8) * (x - a) for a, x in zip(average, new, strict=True)]
        torch.nn.utils.vector_to_parameters(torch.tensor(new, dtype=torch.float64), parameters)
    return new, average


def test_steps_and_average_are_those_of_the_formulas():
    settings = ("lr=2.0", "initial=1e-3", "eps=0.01", "weight_decay=0.1")
    chosen = recipe(OPTIMIZERS, "sgd", "dog", *(f"optimizer.{setting}" for setting in settings))
    ours, other = tanh_net(), tanh_net()
    optimizer = chosen.build(problem_for(ours))
    losses = [float(optimizer.step(lambda: backward(ours)).detach()) for _ in range(40)]
    iterate, average = by_hand(other, 40, factor=2.0, initial=1e-3, eps=0.01, decay=0.1)
    assert vector(ours.parameters()) == pytest.approx(iterate, rel=1e-10)
    before = vector(ours.parameters())
    with chosen.evaluating(optimizer):
        assert vector(ours.parameters()) == pytest.approx(average, rel=1e-10)
        assert vector(ours.parameters()) != before
    assert vector(ours.parameters()) == before
    assert losses[-1] < 0.9 * losses[0]


def test_before_the_first_step_there_is_no_average():
    model = tanh_net()
    optimizer = DoG(model.parameters())
    start = vector(model.parameters())
    with optimizer.averaged():
        assert vector(model.parameters()) == start
    optimizer.step()  # without a gradient nothing is done
    assert vector(model.parameters()) == start
    assert not optimizer.state_dict()["state"].get(0)


def test_it_continues_from_its_state_bit_for_bit(tmp_path):
    models = [tanh_net().float() for _ in range(2)]
    ends = []
    inputs, targets = classification(60)
    for model, stops in zip(models, (False, True), strict=True):
        optimizer = DoG(model.parameters(), initial=1e-3)
        for count in range(12):
            if stops and count == 5:
                torch.save(optimizer.state_dict(), tmp_path / "state.pt")
                optimizer = DoG(model.parameters(), initial=1e-3)
                optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            model.zero_grad()
            cross_entropy(model(inputs.float()), targets).backward()
            optimizer.step()
        with optimizer.averaged():
            ends.append(vector(model.parameters()))
    assert ends[0] == ends[1]


def test_a_parameter_without_a_gradient_stays():
    moved, idle = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = DoG([idle, moved], initial=0.1)
    for _ in range(2):
        moved.grad = torch.full_like(moved, 2.0)
        optimizer.step()
    assert torch.equal(idle, torch.ones_like(idle))
    first = 0.1 * (1 + math.sqrt(6)) / math.sqrt(12 + 1e-8)  # the length of both counts
    second = 0.1 * (1 + math.sqrt(6)) / math.sqrt(24 + 1e-8)
    assert moved.tolist() == pytest.approx([1 - 2 * (first + second)] * 3, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lengths_are_kept_in_float32_for_half_precision(dtype, tmp_path):
    ends = []
    for stops in (False, True):
        parameters = [torch.nn.Parameter(torch.full((4,), value, dtype=dtype)) for value in (1.0, 2.0)]
        optimizer = DoG(parameters, initial=1e-3)
        for count in range(4):
            if stops and count == 2:
                torch.save(optimizer.state_dict(), tmp_path / "state.pt")
                optimizer = DoG(parameters, initial=1e-3)
                optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            for p in parameters:
                p.grad = torch.full_like(p, 300.0)
            optimizer.step()
        state = optimizer.state[parameters[0]]
        assert state["reach"].dtype == state["energy"].dtype == torch.float32
        assert float(state["energy"]) == pytest.approx(4 * 8 * 300.0**2, rel=1e-6)  # float16 ends at 65504
        assert all(p.dtype == dtype and torch.isfinite(p).all() for p in parameters)
        ends.append((state["reach"], state["energy"], *parameters))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_several_groups_are_refused():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    message = "^params: DoG has one step size for all parameters; give them as one group$"
    with pytest.raises(InputError, match=message):
        DoG([{"params": [first]}, {"params": [second]}])
    with pytest.raises(InputError, match=message):
        DoG([first]).add_param_group({"params": [second]})
