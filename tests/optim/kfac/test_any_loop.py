"""K-FAC with ``fisher="auto"``, as the default direction has it: it makes do with any network and loop."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gnewton import GroupedNewton
from gnewton.errors import GnewtonError, InputError
from gnewton.optim.inner_optimizers import parts
from gnewton.optim.kfac import KFAC
from gnewton.optim.kfac.direction import ADAM_SCALE, kfac_direction
from gnewton.optim.shadow_direction import ShadowDirection
from tests.optim.problems import classification, flat, take_step, tanh_net
from tests.processes import FORK, in_processes, process_group

BATCH = classification(20)


class Net(nn.Module):
    """Two layers, to be called as a whole or one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode = nn.Linear(4, 5).double()
        self.decode = nn.Linear(5, 3).double()

    def forward(self, inputs: Tensor) -> Any:
        return self.decode(torch.tanh(self.encode(inputs)))


class ReturnsDict(Net):
    def forward(self, inputs: Tensor) -> Any:
        return {"logits": super().forward(inputs)}


class Checkpointed(Net):
    """With a checkpoint that no other backward pass can enter than that of the loss."""

    def forward(self, inputs: Tensor) -> Any:
        hidden = checkpoint(self.encode, inputs.requires_grad_(), use_reentrant=True)
        return self.decode(torch.tanh(hidden))


def in_parts(model: Any, inputs: Tensor) -> Tensor:
    logits: Tensor = model.decode(torch.tanh(model.encode(inputs)))
    return logits


def as_a_whole(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs
    return logits


def factors(
    model: nn.Module,
    call: Callable[[Any, Tensor], Tensor],
    batches: list[tuple[Tensor, Tensor]],
    **options: Any,
) -> dict[str, tuple[Tensor, Tensor]]:
    optimizer = KFAC(model, lr=0.1, **options)
    for inputs, targets in batches:
        (F.cross_entropy(call(model, inputs), targets) / len(batches)).backward()
    optimizer.step()
    return optimizer.factors


def assert_same(one: dict[str, tuple[Tensor, Tensor]], other: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-14)


EMPIRICAL: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "called in parts": (Net, in_parts),
    "outputs in a dictionary": (ReturnsDict, as_a_whole),
}


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("name", EMPIRICAL)
def test_where_no_labels_can_be_drawn_the_fisher_is_the_empirical_one(name: str, pieces: int) -> None:
    build, call = EMPIRICAL[name]
    batches = list(zip(*(half.chunk(pieces) for half in BATCH), strict=True))
    expected = factors(Net(), as_a_whole, batches, fisher="empirical")
    assert_same(factors(build(), call, batches, fisher="auto"), expected)


class Refusing(Net):
    """With an operation through which only one pass goes back, that of the loss."""

    def forward(self, inputs: Tensor) -> Any:
        return Once.apply(super().forward(inputs))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor) -> Tensor:  # type: ignore[override]
        ctx.passes = 0
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        ctx.passes += 1
        if ctx.passes == 1:
            raise RuntimeError("not now")
        return gradient


def test_a_network_that_no_drawn_vector_can_pass(caplog: pytest.LogCaptureFixture) -> None:
    expected = factors(Net(), as_a_whole, [BATCH], fisher="empirical")
    with caplog.at_level(logging.INFO):
        assert_same(factors(Refusing(), as_a_whole, [BATCH], fisher="auto"), expected)
    assert "K-FAC takes the gradients of the loss, no drawn labels: RuntimeError: not now" in caplog.text
    with pytest.raises(RuntimeError, match="not now"):
        factors(Refusing(), as_a_whole, [BATCH], fisher="true")


def test_a_layer_that_a_checkpoint_calls_in_the_backward_pass() -> None:
    """It has the empirical Fisher, and the layer behind the checkpoint the true one."""
    both = [factors(Net(), as_a_whole, [BATCH], fisher=fisher, seed=4) for fisher in ("empirical", "true")]
    expected = {name: which[name] for name, which in zip(("encode", "decode"), both, strict=True)}
    assert_same(factors(Checkpointed(), as_a_whole, [BATCH], fisher="auto", seed=4), expected)


def test_labels_are_drawn_where_that_is_possible() -> None:
    expected = factors(Net(), as_a_whole, [BATCH], fisher="true", seed=4)
    assert_same(factors(Net(), as_a_whole, [BATCH], fisher="auto", seed=4), expected)


def test_a_network_trained_in_evaluation_mode_is_seen() -> None:
    expected = factors(Net(), as_a_whole, [BATCH], fisher="true", seed=4)
    assert_same(factors(Net().eval(), as_a_whole, [BATCH], fisher="auto", seed=4), expected)
    with pytest.raises(InputError, match="no statistics yet"):
        factors(Net().eval(), as_a_whole, [BATCH], fisher="true")


def test_evaluations_beside_a_training_do_not_count() -> None:
    model = Net()
    optimizer = KFAC(model, fisher="auto", seed=4, statistics_period=1)
    twin = KFAC(other := Net(), fisher="auto", seed=4, statistics_period=1)
    for step in range(3):
        for net, method in ((model, optimizer), (other, twin)):
            if net is model and step > 0:
                net.eval()(BATCH[0] + 1)
            take_step(net.train(), method, BATCH)
    assert_same(optimizer.factors, twin.factors)


def test_transforms_of_torch_func_are_not_seen() -> None:
    model = tanh_net()
    optimizer = KFAC(model, fisher="auto")
    torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(BATCH[0])
    assert not optimizer._capture.sums
    take_step(model, optimizer, BATCH)
    assert optimizer._capture.samples == 0
    assert len(optimizer.factors) == 3


class Indirect(Net):
    """Multiplies by the weight of a layer that it never calls."""

    def forward(self, inputs: Tensor) -> Any:
        return F.linear(torch.tanh(self.encode(inputs)), self.decode.weight, self.decode.bias)


def test_a_layer_that_no_pass_reaches_takes_a_step_of_the_size_of_adams() -> None:
    model = Indirect()
    named = [(name, torch.zeros_like(p, requires_grad=True)) for name, p in model.named_parameters()]
    kfac: Any = kfac_direction(model, likelihood="categorical", momentum=0.5)(named)
    square, step = torch.zeros(3, 5).double(), torch.zeros(3, 5).double()
    for count in range(1, 4):
        model.zero_grad()
        F.cross_entropy(model(BATCH[0] * count), BATCH[1]).backward()
        for (_, shadow), p in zip(named, model.parameters(), strict=True):
            shadow.grad = p.grad
        steps = kfac.advance()
        gradient = model.decode.weight.grad
        assert gradient is not None
        square = 0.999 * square + 0.001 * gradient**2
        step = 0.5 * step + ADAM_SCALE * gradient / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        torch.testing.assert_close(steps[named[2][1]], step, rtol=1e-12, atol=1e-14)
    assert list(kfac.factors) == ["encode"]


def test_without_any_pass_of_the_model_a_training_goes_on() -> None:
    model = Net()
    optimizer = GroupedNewton(model, F.cross_entropy)
    before = flat(model)
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, BATCH[0]), BATCH[1])

    for _ in range(30):
        for name, gradient in torch.func.grad(loss)({k: p.detach() for k, p in parameters.items()}).items():
            parameters[name].grad = gradient
        optimizer.step(batch=BATCH)
    assert bool(flat(model).isfinite().all())
    assert not torch.equal(before, flat(model))
    assert float(loss(parameters).detach()) < 0.5


def test_a_factor_without_inverse_leaves_the_last_one_in_force(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net()
    optimizer = KFAC(model, fisher="auto", statistics_period=1, inverse_period=1)
    take_step(model, optimizer, BATCH)
    before = dict(optimizer._curvature.preconditioners)

    def refuse(*_: Any) -> None:
        raise GnewtonError("no inverse")

    monkeypatch.setattr(optimizer._curvature._kind, "refresh", refuse)
    with caplog.at_level(logging.WARNING):
        take_step(model, optimizer, BATCH)
    assert "the preconditioners stay as they are: no inverse" in caplog.text
    assert optimizer._curvature.preconditioners == before
    strict = KFAC(other := Net(), fisher="true")
    with pytest.raises(GnewtonError, match="no inverse"):
        take_step(other, strict, BATCH)


def test_a_batch_without_samples_leaves_the_factors_as_they_are() -> None:
    model = Net()
    optimizer = KFAC(model, fisher="auto", statistics_period=1)
    take_step(model, optimizer, BATCH)
    before = copy.deepcopy(optimizer.factors)
    optimizer.zero_grad()
    model(BATCH[0][:0]).sum().backward()
    optimizer.step()
    assert_same(optimizer.factors, before)


class Experts(Net):
    """Two layers, each for the samples on its side; at first all are on one."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.border = nn.Linear(5, 3).double(), 9.0

    def forward(self, inputs: Tensor) -> Any:
        hidden, side = torch.tanh(self.encode(inputs)), inputs[:, 0] > self.border
        logits = hidden.new_zeros(len(hidden), 3)
        for expert, chosen in ((self.decode, ~side), (self.other, side)):
            places = chosen.nonzero().flatten()
            logits = logits.index_add(0, places, expert(hidden[places]))
        return logits


@pytest.mark.parametrize("fisher", ["true", "empirical", "auto"])
def test_an_expert_without_samples_has_no_factors_until_it_has_some(fisher: str) -> None:
    model = Experts()
    optimizer = KFAC(model, fisher=fisher, statistics_period=1)
    take_step(model, optimizer, BATCH)
    assert set(optimizer.factors) == {"encode", "decode"}
    model.border = 0.0
    take_step(model, optimizer, BATCH)
    assert set(optimizer.factors) == {"encode", "decode", "other"}
    assert all(bool(m.isfinite().all()) for pair in optimizer.factors.values() for m in pair)


def test_a_restart_does_not_draw_the_same_labels_again() -> None:
    model = tanh_net()
    direction = ShadowDirection(model.named_parameters(), kfac_direction(model, likelihood="categorical"))
    (kfac,) = parts(direction.inner)
    assert isinstance(kfac, KFAC)
    F.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    direction.update()
    position = kfac.stream
    assert position[1] == 1
    direction.restart()
    assert kfac.stream == position
    assert not kfac.factors


# --- the default of GroupedNewton ----------------------------------------


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * self.factor)[:, :3]


@pytest.mark.parametrize(
    ("build", "labels"),
    [
        (tanh_net, ("",)),
        (lambda: torch.compile(tanh_net(), backend="aot_eager"), ("gradient", "adam")),
        (Scale, ("gradient", "adam")),
    ],
)
def test_the_default_is_kfac_where_it_can_watch_the_model(
    build: Callable[[], nn.Module], labels: tuple[str, ...]
) -> None:
    model = build()
    optimizer = GroupedNewton(model, F.cross_entropy, period=2)
    assert optimizer._directions.labels == labels
    assert optimizer._directions.with_kfac == (labels == ("",))
    for _ in range(4):
        take_step(model, optimizer, BATCH)


# --- several processes ---------------------------------------------------


class Branches(nn.Module):
    """A second layer beside the first, used where the first input is positive."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always = nn.Linear(4, 3).double()
        self.sometimes = nn.Linear(4, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.always(inputs) + (self.sometimes(inputs) if inputs[0, 0] > 0 else 0)


def shares() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = BATCH
    one, other = inputs[:10].clone(), inputs[10:].clone()
    one[0, 0], other[0, 0] = 1.0, -1.0
    return [(one, targets[:10]), (other, targets[10:])]


def work(rank: int, world: int, folder: Path, results: Any) -> None:
    with process_group(rank, world, folder):
        model = Branches()
        optimizer = KFAC(model, fisher="empirical")
        inputs, targets = shares()[rank]
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        results.put({name: [m.tolist() for m in both] for name, both in optimizer.factors.items()})


def test_processes_whose_passes_reach_different_layers_join_their_factors(tmp_path: Path) -> None:
    results = FORK.SimpleQueue()
    in_processes(work, 2, tmp_path, results)
    expected = factors(Branches(), as_a_whole, shares(), fisher="empirical")
    for _ in range(2):
        joined = {
            name: tuple(torch.tensor(m, dtype=torch.float64) for m in both)
            for name, both in results.get().items()
        }
        assert_same(joined, expected)
