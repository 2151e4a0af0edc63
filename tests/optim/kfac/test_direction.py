"""K-FAC's step as a direction by name: on the layers that it treats, beside Adam's on the others."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton
from gnewton.optim.inner_optimizers import CompositeOptimizer
from gnewton.optim.kfac import KFAC
from gnewton.optim.kfac.direction import ADAM_SCALE, kfac_direction, likelihood_of
from gnewton.optim.shadow_direction import ShadowDirection
from tests.optim.problems import classification, take_step, tanh_net


class Mixed(nn.Module):
    """An embedding, a normalisation and a scale beside two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.norm(self.embedding(tokens).mean(1)))) * self.scale)


def mixed(seed: int = 0) -> Mixed:
    torch.manual_seed(seed)
    return Mixed().double()


def tokens(count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(7, (count, 5), generator=generator), torch.randint(3, (count,), generator=generator)


def shadows(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, torch.zeros_like(p, requires_grad=True)) for name, p in model.named_parameters()]


def step_of(model: nn.Module, named: list[tuple[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    inputs, targets = tokens()
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    for (_, shadow), p in zip(named, model.parameters(), strict=True):
        shadow.grad = p.grad
    optimizer.step()


def test_each_parameter_takes_the_step_of_its_own_method() -> None:
    model, other = mixed(), mixed()
    named = shadows(model)
    optimizer = kfac_direction(model, seed=3, likelihood="categorical")(named)
    assert isinstance(optimizer, CompositeOptimizer)
    step_of(model, named, optimizer)

    alone = shadows(other)
    treated = [pair for pair in alone if pair[0].startswith(("hidden", "head"))]
    rest = [pair for pair in alone if not pair[0].startswith(("hidden", "head"))]
    kfac = KFAC(other, lr=1.0, params=treated, seed=3)
    step_of(other, alone, kfac)
    torch.optim.Adam([shadow for _, shadow in rest], lr=ADAM_SCALE).step()
    for (name, shadow), (_, expected) in zip(named, alone, strict=True):
        assert shadow.abs().max() > 0, name
        torch.testing.assert_close(shadow, expected, rtol=0, atol=0)


def test_a_step_is_read_off_part_by_part_and_made_where_it_is_watched() -> None:
    """K-FAC's part is read off beside Adam's, to the last bit as if the shadows moved."""
    steps, watched = {}, []
    for case in ("read off", "part watched", "whole watched"):
        model, (inputs, targets) = mixed(), tokens()
        factory = kfac_direction(model, fisher="empirical", momentum=0.9, statistics_period=1)
        direction = ShadowDirection(model.named_parameters(), factory)
        composite = direction.inner
        kfac, adam = composite.parts  # type: ignore[attr-defined]
        assert [type(part) for part in (kfac, adam)] == [KFAC, torch.optim.AdamW]
        if case == "read off":
            kfac.step = composite.step = None  # neither is called
        else:
            owner = kfac if case == "part watched" else composite
            owner.register_step_pre_hook(lambda *_, case=case: watched.append(case))  # type: ignore[misc]
        for _ in range(4):
            model.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            step = direction.update()
        steps[case] = [u.clone() for u in step]
        assert direction.is_finite()
        kept = next(iter(adam.state.values()))["exp_avg"]
        kept.fill_(torch.nan)
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        direction.update()
        assert not direction.is_finite()
    assert watched == ["part watched"] * 5 + ["whole watched"] * 5
    assert all(float(u.abs().max()) > 0 for u in steps["read off"])
    for case in ("part watched", "whole watched"):
        for ours, theirs in zip(steps["read off"], steps[case], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        pytest.param(tanh_net, (KFAC,), id="only treated layers"),
        pytest.param(
            lambda: nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4)), (torch.optim.AdamW,), id="none"
        ),
        pytest.param(mixed, (KFAC, torch.optim.AdamW), id="both"),
    ],
)
def test_a_method_without_parameters_is_left_out(build: object, kinds: tuple[type, ...]) -> None:
    model = build()  # type: ignore[operator]
    optimizer = kfac_direction(model)(shadows(model))
    assert tuple(type(part) for part in getattr(optimizer, "parts", (optimizer,))) == kinds


def test_large_layers_are_left_to_adam() -> None:
    model = tanh_net()  # 4-6-5-3: the factors have 5 and 6, 7 and 5, 6 and 3 rows
    optimizer = kfac_direction(model, largest_factor=6)(shadows(model))
    kfac, adam = optimizer.parts  # type: ignore[attr-defined]
    assert kfac.layers == ["0", "4"]
    assert [p.shape for p in adam.param_groups[0]["params"]] == [(5, 6), (5,)]


def test_the_decay_takes_the_same_share_of_every_parameter() -> None:
    model = mixed()
    named = [(name, p.detach().clone().requires_grad_()) for name, p in model.named_parameters()]
    before = {name: p.detach().clone() for name, p in named}
    optimizer = kfac_direction(model, weight_decay=0.1)(named)
    inputs, targets = tokens()
    F.cross_entropy(model(inputs), targets).backward()
    for _, p in named:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in named:
        torch.testing.assert_close(p.detach(), 0.9 * before[name])


LOSSES: dict[str, tuple[Callable[..., Tensor], str | None]] = {
    "cross entropy": (F.cross_entropy, "categorical"),
    "module": (nn.CrossEntropyLoss(label_smoothing=0.1), "categorical"),
    "partial": (partial(F.cross_entropy, label_smoothing=0.1), "categorical"),
    "squares": (F.mse_loss, "gaussian"),
    "module of squares": (nn.MSELoss(), "gaussian"),
    "sum, module": (nn.MSELoss(reduction="sum"), None),
    "sum, partial": (partial(F.mse_loss, reduction="sum"), None),
    "binary, module": (nn.BCEWithLogitsLoss(), "bernoulli"),
    "binary": (F.binary_cross_entropy_with_logits, "bernoulli"),
    "absolute": (F.l1_loss, None),
    "own": (lambda outputs, targets: F.cross_entropy(outputs, targets), None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_likelihood_of_a_loss(name: str) -> None:
    loss_fn, expected = LOSSES[name]
    assert likelihood_of(loss_fn) == expected


@pytest.mark.parametrize("loss", ["known", "own"])
def test_it_trains_by_name(loss: str) -> None:
    model, batch = mixed(), tokens()
    loss_fn = F.cross_entropy if loss == "known" else (lambda o, t: F.cross_entropy(o, t))
    optimizer = GroupedNewton(model, loss_fn, direction="kfac", period=3)
    losses = [take_step(model, optimizer, batch, loss_fn) for _ in range(100)]
    assert losses[-1] < 0.5 * losses[0]


def test_any_output_will_do_for_a_loss_of_ones_own() -> None:
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tanh_net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x), "size": x.new_tensor(len(x))}

    model, batch = Outputs(), classification(30)
    loss_fn = lambda o, t: F.cross_entropy(o["logits"], t)  # noqa: E731
    optimizer = GroupedNewton(model, loss_fn, direction="kfac", period=3)
    losses = [take_step(model, optimizer, batch, loss_fn) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_it_goes_on_bit_for_bit_from_a_state() -> None:
    batch = tokens()
    model = mixed()
    optimizer = GroupedNewton(model, F.cross_entropy, direction="kfac", period=3)
    for _ in range(5):
        take_step(model, optimizer, batch)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = [take_step(model, optimizer, batch) for _ in range(5)]
    other = mixed(seed=9)
    other.load_state_dict(weights)
    resumed = GroupedNewton(other, F.cross_entropy, direction="kfac", period=3)
    resumed.load_state_dict(state)
    assert [take_step(other, resumed, batch) for _ in range(5)] == expected


def test_half_precision_with_few_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).bfloat16()
    optimizer = GroupedNewton(model, F.cross_entropy, direction="kfac", period=4)
    batch = torch.randn(8, 64).bfloat16(), torch.randint(3, (8,))
    losses = [take_step(model, optimizer, batch) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_the_last_layer_of_attention_is_left_to_adam() -> None:
    """It is never called, only its weight is read, so K-FAC has no statistics of it."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double()
    kfac, adam = kfac_direction(model)(shadows(model)).parts  # type: ignore[attr-defined]
    assert kfac.layers == ["linear1", "linear2"]
    assert len(adam.param_groups[0]["params"]) == 8  # of attention four, of each norm two


class Named(nn.Module):
    """Takes its input by name and returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tanh_net()

    def forward(self, *, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.net(x))


def test_samples_of_inputs_by_name_are_counted() -> None:
    model = Named()
    optimizer = KFAC(model, fisher="empirical")
    inputs, targets = classification(12)
    F.cross_entropy(model(x=inputs).logits, targets).backward()
    optimizer.step()
    a, _ = optimizer.factors["net.0"]
    torch.testing.assert_close(a[-1, -1].item(), 1.0)  # the mean square of the bias's input


def test_gradients_that_are_discarded_leave_no_statistics() -> None:
    model, (inputs, targets) = tanh_net(), classification(12)
    optimizer = GroupedNewton(model, lambda o, t: F.cross_entropy(o, t), direction="kfac")
    (kfac,) = (member.inner for member in optimizer._directions.members)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
    assert kfac._capture.samples == 12  # type: ignore[attr-defined]


def test_the_hooks_go_with_the_optimizer() -> None:
    model = tanh_net()
    for _ in range(3):
        GroupedNewton(model, F.cross_entropy, direction="kfac")
    gc.collect()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
