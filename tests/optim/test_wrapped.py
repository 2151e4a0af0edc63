"""Models inside DistributedDataParallel or torch.compile train as the network itself does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gnewton import KFAC, GroupedNewton, Partition
from gnewton.errors import InputError
from gnewton.optim.controllers import Constant
from gnewton.summary import Summarizer, summarize
from gnewton.wrappers import is_compiled, named_parameters, plain_name, uncompiled, unwrapped
from tests.optim.problems import classification, flat, take_step, tanh_net
from tests.processes import FORK, in_processes, process_group


def whole() -> nn.Module:
    return torch.compile(tanh_net(), backend="aot_eager")  # type: ignore[return-value]


def in_place() -> nn.Module:
    model = tanh_net()
    model.compile(backend="aot_eager", fullgraph=True)
    return model


def part() -> nn.Module:
    model = tanh_net()
    model[2] = torch.compile(model[2], backend="aot_eager")  # type: ignore[index,operator]
    return model


COMPILED: dict[str, Callable[[], nn.Module]] = {"whole": whole, "in place": in_place, "part": part}

BUILD: dict[str, Callable[..., Any]] = {
    "pair": lambda model, **options: GroupedNewton(
        model, cross_entropy, period=2, direction="pair", **options
    ),
    "two directions": lambda model, **options: GroupedNewton(
        model, cross_entropy, period=2, direction={"now": "gradient", "mean": "average"}, **options
    ),
}


def train(model: nn.Module, optimizer: Any, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    return [take_step(model, optimizer, batch) for batch in batches]


BATCHES = [classification(20, seed=seed) for seed in range(6)]


@pytest.mark.parametrize("build", BUILD)
@pytest.mark.parametrize("form", COMPILED)
def test_compiled_models_train_as_the_network_itself(form: str, build: str) -> None:
    plain, model = tanh_net(), COMPILED[form]()
    one, other = BUILD[build](plain), BUILD[build](model)
    assert train(model, other, BATCHES) == pytest.approx(train(plain, one, BATCHES), rel=1e-9)
    if hasattr(one, "partition"):
        assert other.partition == one.partition
        assert other.rates == pytest.approx(one.rates, rel=1e-6)


@pytest.mark.parametrize("form", COMPILED)
def test_the_tangent_engine_sees_through_compiled_code(form: str) -> None:
    plain, model = tanh_net(), COMPILED[form]()
    u = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    inputs, targets = BATCHES[0]
    expected = summarize(plain, cross_entropy, inputs, targets, "by_layer", u)
    seen = dict(zip((name for name, _ in model.named_parameters()), u.values(), strict=True))
    for direction in (u, seen, list(u.values())):
        for loss_fn in (cross_entropy, torch.compile(cross_entropy, backend="aot_eager")):
            summary = summarize(model, loss_fn, inputs, targets, "by_layer", direction, engine="tangent")
            torch.testing.assert_close(summary.hessian, expected.hessian, rtol=1e-10, atol=1e-13)
    reference = summarize(model, cross_entropy, inputs, targets, "by_layer", u, engine="reference")
    torch.testing.assert_close(reference.third, expected.third, rtol=1e-9, atol=1e-12)


def test_training_goes_on_in_compiled_code() -> None:
    """A summary neither compiles nor lets anything be compiled again."""
    calls = []

    def backend(graph: Any, example: Any) -> Any:
        calls.append(len(example))
        return graph.forward

    model = torch.compile(tanh_net(), backend=backend)
    optimizer = GroupedNewton(model, cross_entropy, period=1)  # type: ignore[arg-type]
    train(model, optimizer, BATCHES)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_groups_carry_the_names_of_the_network() -> None:
    model = torch.compile(part(), backend="aot_eager")
    seen = [name for name, _ in model.named_parameters()]  # type: ignore[attr-defined]
    names = [name for name, _ in tanh_net().named_parameters()]
    assert seen[2] == "_orig_mod.2._orig_mod.weight"
    assert Partition.per_tensor(model).names == tuple(names)  # type: ignore[arg-type]
    for given in (names, seen, [seen[0], *names[1:]]):
        partition = Partition.from_names(model, {"first": given[:2], "others": given[2:]})  # type: ignore[arg-type]
        assert partition.groups[0].parameters == tuple(names[:2])
    assert Partition.by_layer(model).names == ("0", "2", "4")  # type: ignore[arg-type]
    assert GroupedNewton(model, cross_entropy, partition).partition == partition  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown parameter '2.wait'; did you mean '2.weight'"):
        Partition.from_names(model, [["_orig_mod.2._orig_mod.wait"]])  # type: ignore[arg-type]


class Holder(nn.Module):
    """A network with a part called as the wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


def test_a_part_called_module_keeps_its_name() -> None:
    model = Holder()
    assert list(named_parameters(model)) == ["module.weight", "module.bias"]
    assert plain_name(model, "module.weight") == "module.weight"
    assert Partition.by_layer(model).names == ("module",)


def test_unwrapping() -> None:
    model = tanh_net()
    assert unwrapped(model) is model
    assert unwrapped(torch.compile(model)) is model
    assert [is_compiled(make()) for make in COMPILED.values()] == [True] * 3
    assert not is_compiled(model)
    with uncompiled():
        assert part()(BATCHES[0][0]).shape == (20, 3)


@pytest.mark.parametrize(
    "build",
    [
        partial(GroupedNewton, loss_fn=cross_entropy),
        KFAC,
        Partition.per_tensor,
        Partition.by_layer,
        lambda model: Summarizer(model, cross_entropy, "single"),
    ],
)
def test_data_parallel_is_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"^model: DataParallel .*pass the module inside it, or use Distr"):
        build(nn.DataParallel(tanh_net()))


@pytest.mark.parametrize("form", COMPILED)
def test_kfac_needs_layers_that_are_not_compiled(form: str) -> None:
    model = COMPILED[form]()
    with pytest.raises(InputError, match="^model: it is compiled, .*pass and train the model itself$"):
        KFAC(model)
    with pytest.raises(InputError, match="^model: it is compiled"):
        GroupedNewton(model, cross_entropy, direction=lambda named: KFAC(model, params=named))


# --- DistributedDataParallel --------------------------------------------------------------------------------

DISTRIBUTED: dict[str, Callable[..., Any]] = BUILD | {
    "kfac": lambda model: KFAC(model, lr=0.05, fisher="empirical"),
    "kfac direction": lambda model: GroupedNewton(
        model,
        cross_entropy,
        period=2,
        direction=lambda named: KFAC(model, params=named, fisher="empirical", kl_clip=None),
    ),
    "safeguard": lambda model: GroupedNewton(
        model, cross_entropy, period=1, direction="pair", controller=Constant()
    ),
}

# after the parameters have been thrown away: every other sample is zero, where the loss hardly shows it
QUIET = (BATCHES[0][0] * (torch.arange(20) % 2 == 0)[:, None], BATCHES[0][1])


def trained(model: nn.Module, name: str, batches: list[tuple[Tensor, Tensor]]) -> tuple[list[float], ...]:
    """Parameters and rates after some steps."""
    optimizer = DISTRIBUTED[name](model)
    train(model, optimizer, batches[:-1])
    if name == "safeguard":
        with torch.no_grad():
            first, *_, last, _ = model.parameters()
            first.mul_(-30.0)
            last.mul_(8.0)
        losses = train(model, optimizer, batches[-1:])
        assert optimizer.rejected == 1
        quiet = not batches[-1][0].any()
        assert (losses[0] < 2) == quiet, "on its own, the process with the zeros would go on"
    return flat(model).tolist(), list(getattr(optimizer, "rates", {}).values())


def work(rank: int, world: int, folder: Path, results: Any) -> None:
    with process_group(rank, world, folder):
        share = [(x[rank::world], y[rank::world]) for x, y in (*BATCHES, QUIET)]
        for name in DISTRIBUTED:
            results.put((name, trained(DistributedDataParallel(tanh_net()), name, share)))
        gc.collect()  # the wrapper holds on to the group


@pytest.mark.parametrize("world", [1, 2])
def test_distributed_data_parallel_trains_as_the_network_itself(world: int, tmp_path: Path) -> None:
    results = FORK.SimpleQueue()
    in_processes(work, world, tmp_path, results)
    expected = {name: trained(tanh_net(), name, [*BATCHES, QUIET]) for name in DISTRIBUTED}
    for _ in range(world * len(DISTRIBUTED)):
        name, (numbers, rates) = results.get()
        assert numbers == pytest.approx(expected[name][0], rel=1e-8, abs=1e-11), name
        assert rates == pytest.approx(expected[name][1], rel=1e-6), name
