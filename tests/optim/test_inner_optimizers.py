"""GroupedNewton with constant rates is the inner optimizer: weight decay, maximisation and state included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim import directions
from gnewton.optim.averaging import NoAveraging
from tests.optim.problems import EXACT, NOTHING, Quadratic, advance, flat, take_step, tanh_net, value

torch_optim = torch.optim
INNER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch_optim.SGD,
    "sgd-decay": partial(torch_optim.SGD, momentum=0.9, weight_decay=0.1),
    "dampened": partial(torch_optim.SGD, momentum=0.9, dampening=0.9, weight_decay=0.1),
    "nesterov": partial(torch_optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": torch_optim.Adam,
    "adam-decay": partial(torch_optim.Adam, weight_decay=0.1),
    "adam-decoupled": partial(torch_optim.Adam, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": partial(torch_optim.AdamW, weight_decay=0.1),
    "amsgrad": partial(torch_optim.AdamW, weight_decay=0.1, amsgrad=True),
    "nadam": partial(torch_optim.NAdam, weight_decay=0.1),
    "nadam-decoupled": partial(torch_optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": partial(torch_optim.RAdam, weight_decay=0.1),
    "rmsprop": partial(torch_optim.RMSprop, weight_decay=0.1, momentum=0.5, centered=True),
    "adagrad": partial(torch_optim.Adagrad, weight_decay=0.1),
    "adamax": partial(torch_optim.Adamax, weight_decay=0.1),
}
if hasattr(torch_optim, "Muon"):
    INNER["muon"] = partial(directions.muon_with_adamw, weight_decay=0.1)
RATE = 0.02


@pytest.fixture(autouse=True)
def _one_device_kind_of_math() -> Iterator[None]:
    """Muon rounds to bfloat16: the same thread count on both sides keeps its steps the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_constant_rates(model: nn.Module, **options: Any) -> GroupedNewton:
    optimizer = GroupedNewton(model, F.cross_entropy, step_size=1.0, **EXACT, **options)
    optimizer.hold(RATE)
    return optimizer


@pytest.mark.parametrize("name", INNER)
def test_constant_rates_are_the_inner_optimizer(name: str) -> None:
    model = tanh_net()
    twin = copy.deepcopy(model)
    start = flat(model).clone()
    advance(model, with_constant_rates(model, direction=partial(INNER[name], lr=1.0)), 0, 20)
    advance(twin, INNER[name](list(twin.named_parameters()), lr=RATE), 0, 20)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-11, atol=1e-11)
    assert (flat(model) - start).abs().max() > 1e-3


MAXIMISING = [name for name in INNER if name != "muon"]


@pytest.mark.parametrize("name", MAXIMISING)
@pytest.mark.parametrize("own", [False, True], ids=["outer", "both"])
def test_maximising_is_the_inner_optimizer_maximising(name: str, own: bool) -> None:
    model = tanh_net()
    twin = copy.deepcopy(model)
    inner = partial(INNER[name], lr=1.0, maximize=own)
    advance(model, with_constant_rates(model, direction=inner, maximize=True), 0, 20)
    advance(twin, INNER[name](list(twin.named_parameters()), lr=RATE, maximize=True), 0, 20)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", INNER)
def test_a_restored_inner_optimizer_continues_bit_for_bit(name: str) -> None:
    straight, model = tanh_net(), tanh_net()
    factory = partial(INNER[name], lr=1.0)
    advance(straight, with_constant_rates(straight, direction=factory), 0, 10)
    optimizer = with_constant_rates(model, direction=factory)
    advance(model, optimizer, 0, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed = tanh_net(seed=99)
    resumed.load_state_dict(saved[0])
    other = with_constant_rates(resumed, direction=factory)
    other.load_state_dict(saved[1])
    advance(resumed, other, 5, 10)
    assert torch.equal(flat(resumed), flat(straight))


def newton_step(model: Quadratic, loss_fn: Callable[..., Tensor], **options: Any) -> None:
    optimizer = GroupedNewton(
        model,
        loss_fn,
        Partition.per_tensor(model),
        period=1,
        step_size=1.0,
        internal_damping=0.0,
        negative_rates="keep",
        proximal=0.0,
        averaging=NoAveraging(),
        **EXACT,
        **options,
    )
    take_step(model, optimizer, NOTHING, loss_fn)


def test_a_coupled_decay_is_part_of_the_objective() -> None:
    """One group per scalar: the step lands at the minimum of ½xᵀAx − bᵀx + (wd/2)‖x‖²."""
    model = Quadratic(5)
    decayed = model.a + 0.3 * torch.eye(5, dtype=torch.float64)
    newton_step(model, value, direction=partial(torch_optim.SGD, lr=1.0, weight_decay=0.3))
    torch.testing.assert_close(flat(model), torch.linalg.solve(decayed, model.b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_maximising_minimises_the_opposite(decay: float) -> None:
    model = Quadratic(5)
    decayed = model.a + decay * torch.eye(5, dtype=torch.float64)
    factory = partial(torch_optim.SGD, lr=1.0, weight_decay=decay)
    newton_step(model, lambda outputs, targets: -outputs, direction=factory, maximize=True)
    torch.testing.assert_close(flat(model), torch.linalg.solve(decayed, model.b), rtol=1e-9, atol=1e-9)


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    if not hasattr(torch_optim, "Muon"):
        pytest.skip("this torch has no Muon")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    muon, adamw = directions.muon_with_adamw(list(model.named_parameters())).parts  # type: ignore[attr-defined]
    assert muon.param_groups[0]["param_names"] == ["2.weight"]
    assert adamw.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.bias"]


def test_where_torch_has_no_muon_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch_optim, "Muon", raising=False)
    with pytest.raises(InputError, match="direction=muon: torch .* has no Muon"):
        directions.muon_with_adamw([("w", torch.zeros(2, 2))])
