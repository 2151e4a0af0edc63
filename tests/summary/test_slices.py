"""Summaries along groups that are slices of parameters, against dense matrices in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gnewton import Partition
from gnewton.errors import InputError
from gnewton.summary import Summarizer, summarize
from gnewton.summary.tangent import slice_rows

from .ways import by, summarizer_by


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(3, 4)
        self.place = nn.Parameter(torch.randn(1, 3, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.output = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.place
        return self.output((h + self.attention(h, h, h, need_weights=False)[0]).mean(1))


class Tied(nn.Module):
    """An embedding that is the output layer too: its channels lie along the sum of the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.words(x).mean(1))) @ self.words.weight.T


def batch(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(6, *shape, dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)), batch(4)
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 2, 2), nn.Flatten(), nn.Linear(50, 3)
        ),
        batch(2, 6, 6),
    ),
    "attention": (Attention, batch(3, 3)),
    "tied": (Tied, lambda: torch.randint(5, (6, 3))),
}  # fmt: skip
SCHEMES = {
    "per_channel": Partition.per_channel,
    "row_blocks": lambda model: Partition.row_blocks(model, 3),
    "per_head": Partition.per_head,
}


def problem(kind: str) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    build, inputs = CASES[kind]
    model, x = build().double(), inputs()
    return model, x, torch.randint(3, (6,)), {n: torch.randn_like(p) for n, p in model.named_parameters()}


def along(
    model: nn.Module, partition: Partition, direction: dict[str, Tensor], x: Tensor
) -> Callable[[Tensor], Tensor]:
    """ε ↦ the outputs at θ + Σ_s ε_s P_s u."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(epsilon: Tensor) -> Tensor:
        moved = {}
        for name, p in fixed.items():
            factor = torch.zeros_like(p)
            for s, group in enumerate(partition):
                factor = factor + epsilon[s] * (name in group.parameters)
                for piece in group.slices:
                    if piece.parameter == name:
                        for start, stop in piece.ranges:
                            mask = torch.zeros_like(p)
                            mask.narrow(piece.axis, start, stop - start).fill_(1.0)
                            factor = factor + epsilon[s] * mask
            moved[name] = p + factor * direction[name]
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return functional_call(model, moved, (x,))

    return outputs


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-10 * b.abs().max())


PAIRS = [(kind, scheme) for kind in CASES for scheme in ("per_channel", "row_blocks")] + [
    ("attention", "per_head")
]


@pytest.mark.parametrize(("kind", "scheme"), PAIRS)
def test_engines_agree_with_the_dense_matrices(kind: str, scheme: str) -> None:
    model, x, y, direction = problem(kind)
    partition = SCHEMES[scheme](model)
    outputs, zero = along(model, partition, direction, x), torch.zeros(len(partition), dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda e: F.cross_entropy(outputs(e), y), zero)
    gradient = torch.autograd.functional.jacobian(lambda e: F.cross_entropy(outputs(e), y), zero)
    jacobian = torch.autograd.functional.jacobian(outputs, zero)
    p = torch.softmax(outputs(zero), 1)
    bend = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(x)
    dense = torch.einsum("nks,nkl,nlt->st", jacobian, bend, jacobian)
    for engine in ("tangent", "reference"):
        summary = summarize(model, F.cross_entropy, x, y, partition, direction, engine=engine)
        assert near(summary.hessian, hessian)
        assert near(summary.gradient, gradient)
    for way in ("rows", "tangents"):
        summary, taken = by(way, (model, F.cross_entropy, x, y, partition, direction))
        assert taken == way
        assert near(summary.hessian, dense)
        assert near(summary.gradient, gradient)
    options = {"curvature": "gauss_newton", "engine": "reference"}
    assert near(summarize(model, F.cross_entropy, x, y, partition, direction, **options).hessian, dense)


def test_mixed_slices_are_pushed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, direction = problem("tied")
    options = {"curvature": "gauss_newton", "engine": "tangent"}
    whole = summarize(model, F.cross_entropy, x, y, "per_channel", direction, **options)
    monkeypatch.setattr(slice_rows, "ENTRIES", 50)
    few = summarize(model, F.cross_entropy, x, y, "per_channel", direction, **options)
    assert near(few.hessian, whole.hessian)
    assert near(few.gradient, whole.gradient)


def test_places_of_slices_are_found_despite_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(4), nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = torch.randn(6, 4, 4, dtype=torch.float64), torch.randint(3, (6,))
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    old, fresh = (summarizer_by("rows", model, F.cross_entropy, "per_channel") for _ in range(2))
    for _ in range(2):
        old.summarize(torch.zeros_like(x), y, direction)
    assert near(old.summarize(x, y, direction).hessian, fresh.summarize(x, y, direction).hessian)


@pytest.mark.parametrize(("rows", "way"), [(256, "tangents"), (16, "rows")])
def test_the_way_with_fewer_operations_is_taken(rows: int, way: str) -> None:
    """Nine columns go back; three groups that go forward are fewer, 33 are more."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    x, y = torch.randn(100, 64), torch.randint(10, (100,))
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    partition = Partition.row_blocks(model, rows)
    assert by("auto", (model, F.cross_entropy, x, y, partition, direction))[1] == way


def test_third_derivatives_agree() -> None:
    model, x, y, direction = problem("dense")
    partition = Partition.row_blocks(model, 2)
    one, other = (
        summarize(model, F.cross_entropy, x, y, partition, direction, engine=engine).third
        for engine in ("tangent", "reference")
    )
    assert one is not None
    assert other is not None
    assert near(one, other)


def test_coarse_groups_are_sums_and_parts_of_a_batch_join() -> None:
    """The matrices of many groups, merged, are those of the layers, also where the batch is split."""
    model, x, y, direction = problem("convolutions")
    fine, coarse = Partition.per_channel(model), Partition.by_layer(model)
    merge = torch.zeros(len(coarse), len(fine), dtype=torch.float64)
    for t, name in enumerate(fine.names):
        merge[coarse.names.index(name.split("[")[0]), t] = 1
    for curvature, memory in (("fisher", None), ("gauss_newton", None), ("gauss_newton", 3000)):
        many, few = (
            summarize(
                model, F.cross_entropy, x, y, partition, direction, curvature=curvature, max_memory=memory
            )
            for partition in (fine, coarse)
        )
        assert near(merge @ many.hessian @ merge.T, few.hessian)
        assert near(merge @ many.gradient, few.gradient)


def test_many_groups_have_bounded_cost_and_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 700), nn.ReLU(), nn.Linear(700, 3))
    x, y = torch.randn(5, 3), torch.randint(3, (5,))
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    summary = summarize(model, F.cross_entropy, x, y, "per_channel", direction, curvature="gauss_newton")
    assert summary.hessian.shape == (703, 703)
    assert summary.gradient_covariance is not None
    assert summary.hessian_error is None
    assert float(torch.linalg.eigvalsh(summary.hessian)[0]) > -1e-6 * float(summary.hessian.abs().max())
    with pytest.raises(InputError, match="703 groups, some of them slices of tensors: must be at most 256"):
        summarize(model, F.cross_entropy, x, y, "per_channel", direction)
    with pytest.raises(InputError, match="slices are not compiled"):
        summarize(nn.Linear(3, 3), F.cross_entropy, x, y, "per_channel", direction, engine="compiled")


def test_coupled_samples_are_measured_by_tangents_or_refused() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(3, (8,))
    for width in (4, 300):
        model = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3)
        ).double()
        direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        summarizer = Summarizer(
            model, F.cross_entropy, "per_channel", curvature="gauss_newton", engine="tangent"
        )
        if width == 300:
            with pytest.raises(InputError, match="matrix without rows of samples"):
                summarizer.summarize(x, y, direction)
            continue
        other = summarize(
            model,
            F.cross_entropy,
            x,
            y,
            "per_channel",
            direction,
            curvature="gauss_newton",
            engine="reference",
        )
        assert near(summarizer.summarize(x, y, direction).hessian, other.hessian)
