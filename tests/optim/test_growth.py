"""Groups that are added to a GroupedNewton at work: an unfrozen layer, a model that has grown."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.averaging import ExponentialAveraging, StaticAveraging, UniformAveraging
from gnewton.optim.directions import muon_with_adamw
from gnewton.optim.kfac import KFAC
from gnewton.optim.rate_rule import RateUpdate
from gnewton.optim.shadow_direction import DirectionFactory
from tests.optim.problems import EXACT, Stream, advance, flat, tanh_net

GRADIENT = partial(torch.optim.SGD, lr=1.0)
DIRECTIONS: dict[str, Any] = {
    "average": partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=1.0),
    "nadam": partial(torch.optim.NAdam, lr=1.0),
    "pair": {"gradient": GRADIENT, "adam": partial(torch.optim.Adam, lr=1.0)},
}
if hasattr(torch.optim, "Muon"):
    DIRECTIONS["muon"] = muon_with_adamw
RULES: dict[str, Callable[[], dict[str, Any]]] = {
    "default": dict,
    "no warm-up": lambda: {"warmup": 0},
    "uniform": lambda: {"averaging": UniformAveraging(2)},
    "static": lambda: {"averaging": StaticAveraging(2), "curvature": Stream()},
    "capped": lambda: {"cap": 0.05},
}


def thawing(seed: int = 0) -> nn.Module:
    """A network of which only the last layer is trained."""
    model = tanh_net(seed)
    for layer in (model[0], model[2]):  # type: ignore[index]
        layer.requires_grad_(False)
    return model


def build(model: nn.Module, **options: Any) -> GroupedNewton:
    return GroupedNewton(model, F.cross_entropy, **{"period": 3} | options)


def thaw(model: nn.Module, optimizer: GroupedNewton, layer: int, name: str | None = None) -> None:
    chosen = model[layer].requires_grad_(True)  # type: ignore[index]
    optimizer.add_param_group({"params": list(chosen.parameters())} | ({"name": name} if name else {}))


def joint(model: nn.Module) -> Partition:
    """The groups of a model whose layers were thawed from the last to the first."""
    groups = {"4.weight": ["4.weight"], "4.bias": ["4.bias"]}
    groups |= {"middle": ["2.weight", "2.bias"], "0.weight": ["0.weight", "0.bias"]}
    return Partition.from_names(model, groups)


@pytest.mark.parametrize("name", [name for name in RULES if name != "static"])
def test_the_rates_afterwards_are_those_of_an_optimizer_built_for_all_groups(name: str) -> None:
    """Both see the same gradients and, since nothing moves, the same parameters."""
    model, updates, expected = thawing(), [], []
    options = {"direction": GRADIENT, "step_size": 1e-30, "period": 2}
    optimizer = build(model, on_update=updates.append, **options | RULES[name]())
    advance(model, optimizer, 0, 5)
    optimizer._updater.controller = build(tanh_net(), **RULES[name]())._updater.controller
    thaw(model, optimizer, 2, "middle")
    thaw(model, optimizer, 0)
    updates.clear()
    twin = copy.deepcopy(model)
    fresh = build(twin, partition=joint(twin), on_update=expected.append, **options | RULES[name]())
    advance(model, optimizer, 5, 13)
    advance(twin, fresh, 5, 13)
    assert [update.step - 5 for update in updates] == [update.step for update in expected]
    for ours, theirs in zip(updates, expected, strict=True):
        assert ours.names == theirs.names == ("4.weight", "4.bias", "middle", "0.weight")
        assert ours.warming_up == theirs.warming_up
        for key in ("rates", "gradient", "curvature", "third"):
            assert torch.equal(getattr(ours.solved, key), getattr(theirs.solved, key)), key


def test_old_groups_go_on_and_the_new_one_waits_for_its_rate() -> None:
    model = thawing()
    updates: list[RateUpdate] = []
    optimizer = build(model, warmup=2, on_update=updates.append)
    advance(model, optimizer, 0, 7)
    rates = list(optimizer.rates.values())
    assert max(rates) > 0
    thaw(model, optimizer, 2, "middle")
    thaw(model, optimizer, 0)
    start = copy.deepcopy(model.state_dict())
    advance(model, optimizer, 7, 9)
    assert list(optimizer.rates.values()) == [*rates, 0.0, 0.0]
    assert torch.equal(model[0].weight, start["0.weight"])  # type: ignore[index]
    assert torch.equal(model[2].weight, start["2.weight"])  # type: ignore[index]
    assert not torch.equal(model[4].weight, start["4.weight"])  # type: ignore[index]
    advance(model, optimizer, 9, 10)
    assert list(optimizer.rates.values())[2] > 0
    assert not torch.equal(model[2].weight, start["2.weight"])  # type: ignore[index]
    assert [update.step for update in updates] == [0, 1, 2, 5, 7, 8, 9]
    assert [update.warming_up for update in updates] == [True, True, False, False, True, True, False]


@pytest.mark.parametrize("moment", [0, 1, 4])
@pytest.mark.parametrize(
    ("direction", "rule"),
    [(name, "default") for name in DIRECTIONS] + [("average", name) for name in RULES if name != "default"],
)
def test_a_saved_state_goes_on_bit_for_bit_in_an_optimizer_for_all_groups(
    direction: str, rule: str, moment: int
) -> None:
    """Saved at once, in the new warm-up, or later; the other adds the groups, or has them built in."""

    def options() -> dict[str, Any]:
        return {"direction": DIRECTIONS[direction]} | RULES[rule]()

    model = thawing()
    optimizer = build(model, **options())
    advance(model, optimizer, 0, 7)
    thaw(model, optimizer, 2, "middle")
    thaw(model, optimizer, 0)
    advance(model, optimizer, 7, 7 + moment)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    advance(model, optimizer, 7 + moment, 18)
    ends = []
    for grows in (False, True):
        other = thawing(seed=5) if grows else tanh_net(seed=5)
        resumed = build(other, **options() | ({} if grows else {"partition": joint(other)}))
        if grows:
            thaw(other, resumed, 2, "middle")
            thaw(other, resumed, 0)
        other.load_state_dict(saved[0])
        resumed.load_state_dict(copy.deepcopy(saved[1]))
        advance(other, resumed, 7 + moment, 18)
        ends.append(flat(other))
    assert torch.equal(ends[0], flat(model))
    assert torch.equal(ends[1], flat(model))


@pytest.mark.parametrize("name", [name for name in DIRECTIONS if name not in ("pair", "muon")])
def test_the_direction_goes_on_for_the_old_parameters(name: str) -> None:
    """With constant rates the optimizer is the inner one, which torch lets grow as well."""
    model = thawing()
    twin = copy.deepcopy(model)
    optimizer = build(model, direction=DIRECTIONS[name], **EXACT)
    reference = DIRECTIONS[name](list(twin[4].parameters()), lr=0.02)  # type: ignore[index]

    def run(first: int, last: int) -> None:
        optimizer.hold(0.02)
        advance(model, optimizer, first, last)
        advance(twin, reference, first, last)

    run(0, 6)
    thaw(model, optimizer, 2)
    reference.add_param_group({"params": list(twin[2].requires_grad_(True).parameters())})  # type: ignore[index]
    run(6, 12)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-11, atol=1e-11)


def test_kfac_as_a_direction_takes_the_new_layer() -> None:
    model = thawing()
    optimizers: list[KFAC] = []

    def factory(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        optimizers.append(KFAC(model, lr=1.0, params=named, fisher="empirical", statistics_period=1))
        return optimizers[-1]

    optimizer = build(model, direction=factory)
    advance(model, optimizer, 0, 5)
    thaw(model, optimizer, 2)
    thaw(model, optimizer, 0)
    advance(model, optimizer, 5, 12)
    assert optimizers[-1].layers == ["0", "2", "4"]
    hooks = [len(layer._forward_hooks) for layer in model]  # type: ignore[union-attr]
    alone = tanh_net()
    single = KFAC(alone, lr=1.0)
    assert hooks == [len(layer._forward_hooks) for layer in alone]  # type: ignore[union-attr]
    assert single.layers == optimizers[-1].layers


def test_a_layer_that_the_model_has_grown_by() -> None:
    model = tanh_net()
    optimizer = build(model)
    advance(model, optimizer, 0, 4)
    model.append(nn.Linear(3, 3).double())  # type: ignore[operator]
    with pytest.raises(InputError, match=r"no group holds 5\.bias, 5\.weight; freeze it or add a group"):
        advance(model, optimizer, 4, 5)
    optimizer.add_param_group({"params": model[5].named_parameters(), "name": "head", "lr": 0.1})  # type: ignore[index]
    assert (optimizer.param_groups[-1]["name"], optimizer.param_groups[-1]["lr"]) == ("head", 0.1)
    before = model[5].weight.detach().clone()  # type: ignore[index]
    advance(model, optimizer, 4, 40)
    assert not torch.equal(model[5].weight, before)  # type: ignore[index]
    assert len(optimizer.partition) == 7
    assert len(optimizer.rates) == 7


def test_until_every_trainable_parameter_is_in_a_group_no_step_is_made() -> None:
    model = thawing()
    optimizer = build(model)
    advance(model, optimizer, 0, 4)
    model.requires_grad_(True)
    optimizer.add_param_group({"params": model[2].weight})  # type: ignore[index]
    optimizer.add_param_group({"params": [model[2].bias]})  # type: ignore[index]
    before = flat(model).clone()
    with pytest.raises(InputError, match=r"no group holds 0\.bias, 0\.weight"):
        advance(model, optimizer, 4, 5)
    assert torch.equal(flat(model), before)
    thaw(model, optimizer, 0)
    advance(model, optimizer, 4, 6)
    assert optimizer.partition.names == ("4.weight", "4.bias", "2.weight", "2.bias", "0.weight")


def test_a_group_added_before_the_first_step_is_as_if_built_in() -> None:
    model, twin = thawing(), tanh_net()
    optimizer = build(model, averaging=ExponentialAveraging(0.5))
    thaw(model, optimizer, 2, "middle")
    thaw(model, optimizer, 0)
    advance(model, optimizer, 0, 8)
    advance(twin, build(twin, partition=joint(twin), averaging=ExponentialAveraging(0.5)), 0, 8)
    assert torch.equal(flat(model), flat(twin))


def test_schedulers_act_on_the_new_group() -> None:
    model = thawing()
    optimizer = build(model, step_size=0.5)
    advance(model, optimizer, 0, 1)
    thaw(model, optimizer, 2, "middle")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    thaw(model, optimizer, 0)
    advance(model, optimizer, 1, 2)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05] * 4)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (lambda model: {"params": [nn.Parameter(torch.zeros(2))]}, r"tensor of shape \(2,\): must be param"),
        (lambda model: {"params": ["2.weight"]}, "params='2.weight': must be parameters of the model"),
        (lambda model: {"params": []}, "is empty"),
        (lambda model: {"params": [model[4].bias]}, r"params=4\.bias: must be in no group yet"),
        (lambda model: {"params": [model[2].bias] * 2}, r"'2\.bias' is twice in '2\.bias'"),
        (lambda model: {"params": [model[0].bias]}, r"'0\.bias', which is frozen"),
        (lambda model: {"params": [model[2].bias], "name": "4.bias"}, r"two groups are called '4\.bias'"),
        (lambda model: {"params": [model[2].bias], "lr": 0.0}, "lr=0.0: must be a finite number > 0"),
        (
            lambda model: {"params": [model[2].bias], "momentum": 0.9},
            "must be one of params, name, lr",
        ),
    ],
)
def test_what_is_no_new_group_is_refused_and_changes_nothing(
    group: Callable[[Any], dict[str, Any]], message: str
) -> None:
    model = thawing()
    optimizer = build(model)
    advance(model, optimizer, 0, 4)
    model[2].requires_grad_(True)  # type: ignore[index]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group(group(model))
    after = optimizer.state_dict()
    assert str(after) == str(before)
    thaw(model, optimizer, 2)
    advance(model, optimizer, 4, 8)


def test_a_direction_that_refuses_the_new_parameters_leaves_everything_as_it_was() -> None:
    model = thawing()

    def matrices(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        if len(named) > 2:
            raise InputError("direction=matrices: no more than two")
        return torch.optim.SGD(named, lr=1.0)

    factory: DirectionFactory = matrices
    optimizer = build(model, direction=factory)
    with pytest.raises(InputError, match="no more than two"):
        thaw(model, optimizer, 2)
    model[2].requires_grad_(False)  # type: ignore[index]
    advance(model, optimizer, 0, 4)
    assert len(optimizer.param_groups) == 2


def test_a_parameter_on_another_device_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, device="meta").requires_grad_(False))
    optimizer = build(model)
    with pytest.raises(InputError, match=r"params=1\.weight, 1\.bias: must be on cpu.*found meta"):
        thaw(model, optimizer, 1)


def test_freezing_or_replacing_a_layer_stops_the_steps_with_a_reason() -> None:
    model = tanh_net()
    optimizer = build(model)
    advance(model, optimizer, 0, 4)
    model[0].requires_grad_(False)  # type: ignore[index]
    with pytest.raises(InputError, match=r"it has no trainable 0\.bias, 0\.weight"):
        advance(model, optimizer, 4, 5)
    model[0] = nn.Linear(4, 6).double()  # type: ignore[index]
    with pytest.raises(InputError, match=r"has other tensors now as 0\.weight, 0\.bias; build"):
        advance(model, optimizer, 4, 5)
