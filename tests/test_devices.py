"""What must hold on every device: on the CPU always, on CUDA where there is one (scripts/gpu/check.sh)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import GroupedNewton
from gnewton.optim.kfac import KFAC
from gnewton.summary import summarize

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.view(-1, 2, 4)
        return self.out(self.norm(h + self.attend(h, h, h, need_weights=False)[0]).flatten(1))


NETWORKS: list[Callable[[], nn.Module]] = [dense, convolutional, Attention]


def task(build: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, inputs, targets = build(), torch.randn(24, 8), torch.randint(3, (24,))
    return model.to(device, dtype), inputs.to(device, dtype), targets.to(device)


def directions(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(p.shape).to(p) for name, p in model.named_parameters()}


@on_every_device
@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("engine", ["tangent", "reference"])
def test_a_summary_is_that_of_the_cpu(build: Callable[[], nn.Module], engine: str, device: str) -> None:
    here, there = (task(build, where, torch.float64) for where in ("cpu", device))
    exact, summary = (
        summarize(model, F.cross_entropy, inputs, targets, None, directions(model), engine=name)  # type: ignore[arg-type]
        for (model, inputs, targets), name in ((here, "reference"), (there, engine))
    )
    assert summary.hessian.device.type == device
    for name in ("gradient", "hessian", "third", "loss"):
        expected, value = getattr(exact, name), getattr(summary, name).cpu()
        assert torch.allclose(value, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max())), name


@on_every_device
def test_matrix_products_of_a_summary_are_not_rounded(device: str) -> None:
    """Also where the user allows TF32: a summary takes it only with tf32=True."""
    exact_model, *batch = task(dense, "cpu", torch.float64)
    exact = summarize(exact_model, F.cross_entropy, *batch, None, directions(exact_model))
    model, *batch = task(dense, device, torch.float32)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        summary = summarize(model, F.cross_entropy, *batch, None, directions(model))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert float((summary.hessian.cpu() - exact.hessian).norm() / exact.hessian.norm()) < 1e-5


@on_every_device
@pytest.mark.parametrize("direction", ["adam", "kfac"])
@pytest.mark.parametrize("build", NETWORKS)
def test_training_goes_down(build: Callable[[], nn.Module], direction: str, device: str) -> None:
    model, inputs, targets = task(build, device, torch.float32)
    chosen = (lambda named: KFAC(model, params=named, lr=1.0)) if direction == "kfac" else direction
    optimizer = GroupedNewton(model, F.cross_entropy, direction=chosen, period=5)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step(batch=(inputs, targets))
    assert losses[-1] < 0.67 * losses[0], direction
    assert max(losses) < 10 * losses[0]


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("partition", ["per_tensor", "per_channel"])
def test_a_step_between_updates_does_not_wait_for_the_device(partition: str) -> None:
    model, inputs, targets = task(dense, "cuda", torch.float32)
    options = {} if partition == "per_tensor" else {"matrix": "gauss_newton", "solver": "ridge"}
    optimizer = GroupedNewton(model, F.cross_entropy, partition, period=10, **options)
    try:
        for step in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            torch.cuda.set_sync_debug_mode("default" if step % 10 == 0 else "error")
            optimizer.step(batch=(inputs, targets))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_every_device
def test_a_training_goes_on_from_its_state_bit_for_bit(device: str) -> None:
    def trained(steps: int, state: dict[str, object] | None = None) -> tuple[nn.Module, GroupedNewton]:
        model, inputs, targets = task(dense, device, torch.float32)
        optimizer = GroupedNewton(model, F.cross_entropy, period=4)
        if state is not None:
            model.load_state_dict(state["model"])  # type: ignore[arg-type]
            optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step(batch=(inputs, targets))
        return model, optimizer

    half, optimizer = trained(10)
    state = {"model": half.state_dict(), "optimizer": optimizer.state_dict()}
    resumed, _ = trained(10, state)
    whole, _ = trained(20)
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
