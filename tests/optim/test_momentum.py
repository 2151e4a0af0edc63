"""SGD's direction read off its buffers is the one that its step on shadows makes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gnewton.optim import shadow_direction as module
from gnewton.optim.inner_optimizers import readable
from gnewton.optim.shadow_direction import ShadowDirection

SETTINGS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "momentum": {"momentum": 0.9},
    "average": {"momentum": 0.9, "dampening": 0.9},
    "part": {"momentum": 0.9, "dampening": 0.5},
    "light": {"momentum": 0.3, "dampening": 0.3},
    "decay": {"momentum": 0.9, "dampening": 0.9, "weight_decay": 0.1},
}


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, 4), (5,), (), (2, 3, 2, 2)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    values[-1] = values[-1].to(memory_format=torch.channels_last)
    return [tensor.requires_grad_() for tensor in values]


def feed(parameters: list[Tensor], step: int, without: tuple[int, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(parameters):
        gradient = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = None if i in without else gradient


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_the_step_on_shadows(name: str, maximize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a parameter whose first gradient comes late, and for one that has none for a while."""
    parameters = tensors()
    named = [(str(i), p) for i, p in enumerate(parameters)]
    factory = partial(torch.optim.SGD, lr=1.0, **SETTINGS[name])
    ours, theirs = (ShadowDirection(named, factory, maximize=maximize) for _ in range(2))
    assert readable(ours.inner)
    for step, without in enumerate([(1,), (1,), (), (), (0, 1), ()]):
        feed(parameters, step, without)
        before = [p.detach().clone() for p in parameters]
        actual = [u.clone() for u in ours.update()]
        with monkeypatch.context() as patch:
            patch.setattr(module, "readable", lambda inner: False)
            expected = theirs.update()
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-14)
        assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    for mine, other in zip(ours.inner.state.values(), theirs.inner.state.values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("settings", [{"lr": 0.5}, {"nesterov": True, "momentum": 0.9}, {"maximize": True}])
def test_what_is_no_plain_buffer_takes_the_step_on_shadows(settings: dict[str, Any]) -> None:
    assert not readable(torch.optim.SGD(tensors(), **{"lr": 1.0} | settings))
    assert not readable(torch.optim.Adam(tensors(), lr=1.0))


def test_a_hook_of_the_optimizer_is_called() -> None:
    calls: list[int] = []

    def factory(named: Any) -> torch.optim.Optimizer:
        inner = torch.optim.SGD(named, lr=1.0)
        inner.register_step_post_hook(lambda *arguments: calls.append(1))
        return inner

    parameters = tensors()
    feed(parameters, 0)
    ShadowDirection([(str(i), p) for i, p in enumerate(parameters)], factory).update()
    assert calls == [1]


def test_a_learning_rate_that_changes_back_and_forth_scales_the_direction() -> None:
    """A step on the shadows leaves numbers in them, which one that is read off must not return."""
    parameters = tensors()
    direction = ShadowDirection(
        [(str(i), p) for i, p in enumerate(parameters)], partial(torch.optim.SGD, lr=2.0)
    )
    feed(parameters, 0)
    doubled = [u.clone() for u in direction.update()]
    torch.testing.assert_close(doubled, [2 * p.grad for p in parameters])  # type: ignore[operator]
    direction.inner.param_groups[0]["lr"] = 1.0
    feed(parameters, 1, without=(0,))
    step = direction.update()
    assert not step[0].any()
    assert torch.equal(step[1], parameters[1].grad)  # type: ignore[arg-type]
