"""``optimizer.rates``: which parameter gets which learning rate, and that it steps with exactly this one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.errors import InputError
from gnewton.optim.options import OPTIMIZERS, TrainingProblem
from gnewton.optim.options.baselines import as_mapping, assign
from tests.optim.problems import classification, tanh_net
from tests.recipes import recipe

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
RATES = "optimizer.rates={0.weight: 0.5, bias: 0.02, 2.weight: 0.0}"
EXPECTED = {"0.weight": 0.5, "0.bias": 0.02, "2.weight": 0.0, "2.bias": 0.02, "4.weight": 0.1, "4.bias": 0.02}


def problem_for(model):
    return TrainingProblem(model, cross_entropy, None, lambda size: [], lambda update: None)


def test_names_come_before_expressions_and_the_first_expression_counts():
    assert assign({"0.bias": 1.0, "weight": 2.0, "^2": 4.0}, NAMES) == {
        "0.weight": 2.0,
        "0.bias": 1.0,
        "2.weight": 2.0,
        "2.bias": 4.0,
        "4.weight": 2.0,
    }


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"9.weight": 1.0}, "'9.weight' names no parameter and matches no name"),
        ({"2.weigth": 1.0}, "did you mean '2.weight'?; the model has 0.weight"),
        ({"weight": 1.0, "2.w": 2.0}, "every parameter that it matches belongs to another key: '2.w'"),
    ],
)
def test_a_key_that_gives_nothing_is_refused(rates, message):
    with pytest.raises(InputError, match="optimizer.rates: ") as caught:
        assign(rates, NAMES)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"a": -1}, "'a: -1': each rate must be a finite number >= 0"),
        ({"a": float("nan")}, "'a: nan': each rate must be a finite number >= 0"),
        ({"a": float("inf")}, "each rate must be a finite number >= 0"),
        ({"a": "x"}, "'a: x': each rate must be a finite number >= 0"),
        ({"a": None}, "'a: null': each rate must be a finite number >= 0"),
        ({"a": True}, "'a: true': each rate must be a finite number >= 0"),
        ({"(": 1.0}, "'(' is neither a name nor a regular expression"),
        ([1.0], "must be a mapping"),
        (0.1, "must be a mapping"),
        ("nowhere.yaml", "the file cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_mapping_of_rates(rates, message):
    with pytest.raises(InputError) as caught:
        as_mapping(rates)
    assert message in str(caught.value)


def test_a_file(tmp_path):
    path = tmp_path / "rates.yaml"
    path.write_text("# suggested\n0.weight: 1.0e-3\nbias: 2\n")
    assert as_mapping(str(path)) == {"0.weight": 1e-3, "bias": 2.0}
    for content, message in (
        ("- 1\n", "holds no mapping"),
        ("a: [\n", "cannot be read"),
        ("", "holds no mapping"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            as_mapping(str(path))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam", "rmsprop"])
def test_every_parameter_steps_with_its_own_rate(name):
    """Against one torch optimizer for each parameter."""
    model = tanh_net()
    inputs, targets = classification(30)
    chosen = recipe(OPTIMIZERS, "sgd", name, "optimizer.lr=0.1", RATES)
    optimizer = chosen.build(problem_for(model))
    twin = copy.deepcopy(model)
    plain = recipe(OPTIMIZERS, "sgd", name, "optimizer.lr=0.1")
    alone = {key: plain.method()([p], lr=EXPECTED[key]) for key, p in twin.named_parameters()}
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.0, 0.02, 0.1, 0.5]
    for _ in range(4):
        for net, steppers in ((model, [optimizer]), (twin, alone.values())):
            net.zero_grad()
            cross_entropy(net(inputs), targets).backward()
            for stepper in steppers:
                stepper.step()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15, msg=key)
    assert torch.equal(model[2].weight, tanh_net()[2].weight)  # rate 0: it stays


def test_without_rates_there_is_one_group():
    model = tanh_net()
    (group,) = recipe(OPTIMIZERS, "sgd", "adam").build(problem_for(model)).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_rates_for_all_leave_no_group_for_lr():
    optimizer = recipe(OPTIMIZERS, "sgd", "sgd", "optimizer.rates={.: 0.7}").build(problem_for(tanh_net()))
    assert [group["lr"] for group in optimizer.param_groups] == [0.7]
