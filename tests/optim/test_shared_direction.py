"""A direction shared by all groups: one number in the summary, one rate for the whole model."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gnewton import GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.averaging import NoAveraging
from gnewton.optim.controllers import Constant
from gnewton.optim.directions import Shared
from gnewton.optim.grouping import Grouping
from gnewton.optim.measure import Measurer, Objective
from gnewton.optim.options import OPTIMIZERS
from tests.optim.problems import EXACT, classification, take_step, tanh_net
from tests.optim.test_directions import directions
from tests.recipes import recipe

SGD = partial(torch.optim.SGD, lr=1.0)
MOMENTUM = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
PLAIN: dict[str, Any] = {
    **EXACT,
    "period": 1,
    "internal_damping": 0.0,
    "negative_rates": "keep",
    "normalise": False,
    "proximal": 0.0,
    "shrinkage": 0.0,
    "averaging": NoAveraging(),
    "controller": Constant(),
    "solver": "newton",
    "cap": None,
    "safeguard": False,
}


@pytest.mark.parametrize("engine", ["tangent", "reference"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_shared_numbers_are_the_sums_over_the_groups(engine: Any, decay: float) -> None:
    """Merging groups sums the entries of ḡ and H̄; D3 of the whole is that of a partition with one group."""
    model = tanh_net()
    inputs, targets = classification(7)
    grouping = Grouping(model, Partition.per_tensor(model))
    two, wd = directions(grouping, 2), [decay] * len(grouping.names)
    objective = Objective(model, F.cross_entropy, engine=engine)
    apart = Measurer(objective, grouping, labels=("a", "b")).measure(inputs, targets, two, wd)
    shared = Measurer(objective, grouping, labels=("a", "b"), shared=(0,))
    together = shared.measure(inputs, targets, two, wd)
    size = len(apart.gradient)
    joining = torch.zeros(size, size, dtype=torch.float64)
    for entry in range(size):
        joining[0 if entry % 2 == 0 else entry, entry] = 1.0
    torch.testing.assert_close(together.gradient, joining @ apart.gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(together.hessian, joining @ apart.hessian @ joining.T, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(together.third[1::2], apart.third[1::2], rtol=1e-10, atol=1e-13)
    one = Grouping(model, Partition.single(model))
    whole = Measurer(Objective(model, F.cross_entropy), one).measure(inputs, targets, [two[0]], wd)
    torch.testing.assert_close(together.third[:1], whole.third, rtol=1e-10, atol=1e-13)
    assert together.norms[0] == pytest.approx(float(whole.norms), rel=1e-14)
    assert not together.third[2::2].any()
    assert not together.norms[2::2].any()
    torch.testing.assert_close(together.lengths, apart.norms)
    assert len(shared.places) == size // 2 + 1
    assert tuple(shared.places)[:2] == ("all:a", f"{grouping.partition.names[0]}:b")


def test_the_step_is_the_newton_step_of_the_model_with_one_shared_rate() -> None:
    model = tanh_net()
    inputs, targets = classification(7)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = GroupedNewton(
        model, F.cross_entropy, direction={"gradient": Shared(SGD), "momentum": MOMENTUM}, **PLAIN
    )
    loss = F.cross_entropy(model(inputs), targets)
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    # at the first step both directions are the gradient: the shared rate is a multiple of the others' sum
    flat = torch.cat([g.flatten() for g in gradient])
    rows = [
        torch.cat([g.flatten() * (i == s) for i, g in enumerate(gradient)]).detach()
        for s in range(len(gradient))
    ]
    basis = torch.stack([flat.detach(), *rows])
    hessian = torch.stack(
        [
            torch.cat(
                [
                    h.flatten()
                    for h in torch.autograd.grad(flat @ row, list(model.parameters()), retain_graph=True)
                ]
            )
            for row in basis
        ]
    )
    rates = torch.linalg.pinv(basis @ hessian.T, rtol=1e-10, hermitian=True) @ (basis @ flat.detach())
    loss.backward()
    optimizer.step(batch=(inputs, targets))
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)])
    torch.testing.assert_close(moved, rates @ basis, rtol=1e-6, atol=1e-9)
    first, *others = optimizer.rates
    assert first == "all:gradient"
    assert len(others) == len(before)


def test_every_group_has_the_shared_rate_and_a_resumed_training_is_the_same() -> None:
    model = tanh_net()
    inputs, targets = classification(16)
    records: list[Any] = []
    optimizer = GroupedNewton(model, F.cross_entropy, direction="pair", period=2, on_update=records.append)

    def train(network: Any, method: Any, steps: int) -> None:
        for _ in range(steps):
            take_step(network, method, (inputs, targets))

    train(model, optimizer, 5)
    by_group = [group["rate"] for group in optimizer.param_groups]
    assert len({rates[0] for rates in by_group}) == 1
    assert len({rates[1] for rates in by_group}) > 1
    assert records[-1].names == tuple(optimizer.rates)
    assert len(records[-1].solved.rates) == len(records[-1].step_size) == len(by_group) + 1
    twin = tanh_net()
    twin.load_state_dict(model.state_dict())
    again = GroupedNewton(twin, F.cross_entropy, direction="pair", period=2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 4)
    train(twin, again, 4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_held_rates_are_given_by_the_names_of_the_rates() -> None:
    model = tanh_net()
    optimizer = GroupedNewton(model, F.cross_entropy, direction="pair")
    values = [0.5, *(0.1 * s for s in range(len(optimizer.param_groups)))]
    optimizer.hold(values)
    assert list(optimizer.rates.values()) == pytest.approx(values)
    assert [group["rate"] for group in optimizer.param_groups] == [
        [0.5, pytest.approx(rate)] for rate in values[1:]
    ]


@pytest.mark.parametrize(
    ("overrides", "decays"), [((), (0.0, 0.3)), (("optimizer.direction.weight_decay=0.1",), (0.1, 0.1))]
)
def test_weight_decay_of_the_pair_is_that_of_both(
    overrides: tuple[str, ...], decays: tuple[float, ...]
) -> None:
    second = ("optimizer/direction=pair", "optimizer.direction.second.weight_decay=0.3")
    chosen = recipe(OPTIMIZERS, "grouped_newton", "grouped_newton", *second, *overrides)
    members = chosen.direction.build(None).values()
    named = [("w", torch.zeros(3))]
    assert tuple(member(named).param_groups[0]["weight_decay"] for member in members) == decays


@pytest.mark.parametrize(
    "choice", [Shared(SGD), {"a": Shared(SGD)}, {"a": Shared(SGD), "b": Shared(MOMENTUM)}]
)
def test_shared_directions_alone_are_refused(choice: Any) -> None:
    with pytest.raises(InputError, match="direction: "):
        GroupedNewton(tanh_net(), F.cross_entropy, direction=choice)
