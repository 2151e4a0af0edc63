"""What does not fit is refused in one line that names the argument and says what to pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gnewton import KFAC, GroupedNewton, solve_cubic, summarize
from gnewton.arguments import explained
from gnewton.errors import InputError
from gnewton.optim.averaging import ExponentialAveraging
from gnewton.optim.controllers import Constant
from gnewton.optim.directions import NAMED
from gnewton.optim.inner_optimizers import inner_groups
from gnewton.optim.options import DIRECTIONS, OPTIMIZERS
from gnewton.summary import Summarizer
from tests.optim.problems import classification, tanh_net
from tests.recipes import recipe

SGD = partial(torch.optim.SGD, lr=0.1)


def newton(**options: Any) -> Any:
    return GroupedNewton(tanh_net(), cross_entropy, **options)


def summarizer(**options: Any) -> Any:
    return Summarizer(tanh_net(), cross_entropy, "single", **options)


def summary(direction: Any) -> Any:
    return summarize(tanh_net(), cross_entropy, *classification(5), "single", direction)


LOSS = "torch.nn.functional.cross_entropy"
UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "a learning rate": (
        lambda: newton(lr=0.1),
        "GroupedNewton: lr=0.1: no such argument; there is no learning rate to set; step_size= is λ_1, the "
        "factor on all rates",
    ),
    "momentum": (lambda: newton(momentum=0.9), "momentum=0.9: no such argument; it belongs to the direction"),
    "a slip": (lambda: newton(perod=3), "perod=3: no such argument; did you mean 'period'?"),
    "an object": (lambda: newton(scheduler=[]), "scheduler=<list>: no such argument"),
    "no loss": (
        lambda: GroupedNewton(tanh_net()),  # type: ignore[call-arg]
        f"GroupedNewton: loss_fn is missing; pass the function of (outputs, targets), such as {LOSS}",
    ),
    "too many": (
        lambda: GroupedNewton(tanh_net(), cross_entropy, None, 10),  # type: ignore[call-arg,arg-type,misc]
        "GroupedNewton: only model, loss_fn, partition may be given by position; name the others",
    ),
    "twice": (
        lambda: GroupedNewton(tanh_net(), cross_entropy, loss_fn=cross_entropy),  # type: ignore[misc]
        "loss_fn is given twice",
    ),
    "former name": (
        lambda: GroupedNewton(tanh_net(), cross_entropy, damping=0.3),  # type: ignore[call-arg]
        "GroupedNewton: damping=0.3: no such argument; λ_1, the factor on all rates, is step_size=",
    ),
    "kfac": (
        lambda: KFAC(tanh_net(), kl_clp=1.0),
        "KFAC: kl_clp=1.0: no such argument; did you mean",
    ),  # type: ignore[call-arg]
    "kfac loss": (
        lambda: KFAC(tanh_net(), loss_fn=cross_entropy),  # type: ignore[call-arg]
        "KFAC: loss_fn=<function>: no such argument; the loss is what backward() is called on",
    ),
    "summarizer": (
        lambda: summarizer(engin="auto"),
        "Summarizer: engin='auto': no such argument;",
    ),
    "summarize": (
        lambda: summarize(tanh_net(), cross_entropy, *classification(5), "single"),  # type: ignore[call-arg]
        "summarize: direction is missing; u by parameter name",
    ),
    "cubic": (
        lambda: solve_cubic(torch.eye(2), torch.ones(2), None, internal_damping=1.0),  # type: ignore[call-arg]
        "solve_cubic: internal_damping=1.0: no such argument; λ_int is damping=",
    ),
    "no damping": (
        lambda: solve_cubic(torch.eye(2), torch.ones(2), None),  # type: ignore[call-arg]
        "solve_cubic: damping is missing; λ_int, the weight of the cubic term",
    ),
}


def refused(attempt: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        attempt()
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_and_missing_arguments(name: str) -> None:
    refused(*UNKNOWN[name])


def test_other_type_errors_are_left_alone() -> None:
    @explained()
    def divide(a: Any, b: Any) -> Any:
        return a / b

    with pytest.raises(TypeError, match="unsupported operand"):
        divide("a", 1)
    assert divide(4, b=2) == 2


MODELS: dict[str, tuple[Any, str]] = {
    "generator": (tanh_net().parameters(), "model: must be an nn.Module, not its parameters"),
    "list": (list(tanh_net().parameters()), "model: must be an nn.Module, not its parameters"),
    "groups": (
        [{"params": list(tanh_net().parameters())}],
        "model: must be an nn.Module, not its parameters",
    ),
    "names": (tanh_net().named_parameters(), "model: must be an nn.Module, not its parameters"),
    "lazy": (
        nn.Sequential(nn.LazyLinear(3)),
        "model: '0.weight' has no shape yet; call the model with a batch first",
    ),
    "class": (nn.Bilinear, "model: must be an nn.Module, not its class; pass Bilinear(…)"),
    "function": (torch.relu, "model: must be an nn.Module, not builtin_function_or_method"),
    "none": (None, "model: must be an nn.Module, not NoneType"),
}
TAKES_MODEL: dict[str, Callable[[Any], Any]] = {
    "grouped_newton": lambda model: GroupedNewton(model, cross_entropy),
    "with partition": lambda model: GroupedNewton(model, cross_entropy, "by_layer"),
    "kfac": lambda model: KFAC(model),
    "summarizer": lambda model: Summarizer(model, cross_entropy, "single"),
    "summarize": lambda model: summarize(model, cross_entropy, *classification(5), "single", {}),
}


@pytest.mark.parametrize("taker", TAKES_MODEL)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_model(name: str, taker: str) -> None:
    model, message = MODELS[name]
    refused(lambda: TAKES_MODEL[taker](model), message)


LOSSES: dict[str, tuple[Any, str]] = {
    "class": (
        nn.CrossEntropyLoss,
        "loss_fn: must be a function of (outputs, targets), not a class",
    ),
    "name": (
        "cross_entropy",
        "loss_fn='cross_entropy': must be a function of (outputs, targets), such as",
    ),
    "value": (torch.ones(()), "loss_fn=<Tensor>: must be a function of (outputs, targets)"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_no_loss(name: str) -> None:
    loss_fn, message = LOSSES[name]
    refused(lambda: GroupedNewton(tanh_net(), loss_fn), message)
    refused(lambda: Summarizer(tanh_net(), loss_fn, "single"), message)


ALLOWED = (
    "must be one of average, gradient, sgd, adam, adamw, nadam, rmsprop, muon, kfac, pair, or a function"
)
VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "direction": (lambda: newton(direction="adma"), f"direction=adma: {ALLOWED}"),
    "hint": (lambda: newton(direction="adma"), "did you mean 'adam'?"),
    "list": (lambda: newton(direction=["adam"]), "direction=<list>: several directions are given by name"),
    "empty": (lambda: newton(direction={}), "direction: the mapping is empty"),
    "instance": (
        lambda: newton(direction=torch.optim.SGD(tanh_net().parameters(), lr=0.1)),
        "direction=<SGD>: must be a function that builds an optimizer, not an optimizer; pass "
        "functools.partial(SGD",
    ),
    "instance by name": (
        lambda: newton(direction={"a": torch.optim.Adam(tanh_net().parameters())}),
        "direction['a']=<Adam>: must be a function that builds an optimizer",
    ),
    "no optimizer": (lambda: newton(direction=list), "must build a torch optimizer, not a <list>"),
    "direction number": (
        lambda: newton(direction=0.1),
        "direction=0.1: must be a function from",
    ),
    "period": (lambda: newton(period="10"), "period='10': must be an integer >= 1"),
    "true period": (lambda: newton(period=True), "period=True: must be an integer >= 1"),
    "warmup": (lambda: newton(warmup=None), "warmup=None: must be an integer >= 0"),
    "step size": (lambda: newton(step_size="0.3"), "step_size='0.3': must be a finite number > 0"),
    "true step size": (lambda: newton(step_size=True), "step_size=True: must be a finite number > 0"),
    "tensor": (lambda: newton(step_size=torch.ones(2)), "step_size=<Tensor>: must be a finite number > 0"),
    "internal": (
        lambda: newton(internal_damping=None),
        "internal_damping=None: must be a finite number",
    ),
    "cap": (lambda: newton(cap="all"), "cap='all': must be a finite number > 0"),
    "proximal": (lambda: newton(proximal=[]), "proximal=<list>: must be a finite number >= 0"),
    "normalise": (lambda: newton(normalise=None), "normalise=None: must be True or False"),
    "maximize": (lambda: newton(maximize="yes"), "maximize='yes': must be True or False"),
    "solver": (
        lambda: newton(solver="qubic"),
        "solver=qubic: must be one of cubic, cubic_diagonal",
    ),
    "solver number": (lambda: newton(solver=3), "solver=3: must be one of cubic"),
    "negative": (
        lambda: newton(negative_rates=True),
        "negative_rates=True: must be one of keep, clip",
    ),
    "averaging": (
        lambda: newton(averaging="exponential"),
        "averaging='exponential': must be an Averaging, such as ExponentialAveraging(0.95)",
    ),
    "controller": (
        lambda: newton(controller="progress"),
        "controller='progress': must be a Controller",
    ),
    "controller class": (
        lambda: newton(controller=Constant),
        "controller=<class Constant>: must be a",
    ),
    "on_update": (lambda: newton(on_update=[]), "on_update=<list>: must be a function of a RateUpdate"),
    "curvature": (lambda: newton(curvature=32), "curvature=<int>: must be an iterable of batches"),
    "forward": (lambda: newton(forward="logits"), "forward: must be a function (model, batch) -> outputs"),
    "engine": (
        lambda: newton(engine="tangents"),
        "engine=tangents: must be one of auto, tangent",
    ),
    "memory": (lambda: newton(max_memory="1GB"), "max_memory='1GB': must be a finite number > 0"),
    "partition": (
        lambda: newton(partition="layers"),
        "partition=layers: must be a Partition, one of",
    ),
    "kfac lr": (lambda: KFAC(tanh_net(), lr="0.1"), "lr='0.1': must be a finite number > 0"),  # type: ignore[arg-type]
    "kfac period": (
        lambda: KFAC(tanh_net(), statistics_period=True),
        "statistics_period=True: must be an integer >= 1",
    ),
    "fisher": (lambda: KFAC(tanh_net(), fisher=True), "fisher=True: must be one of true, empirical"),  # type: ignore[arg-type]
    "reduction": (lambda: summarizer(reduction="avg"), "reduction=avg: must be one of mean, sum"),
    "third": (lambda: summarizer(third=1), "third=1: must be True or False"),
    "tensor direction": (lambda: summary(torch.ones(3)), "direction=<Tensor>: must map parameter names to"),
    "few": (
        lambda: summary([torch.ones(3)]),
        "the direction has 1 tensors, the model 6 trainable",
    ),
    "no tensor": (
        lambda: summary({name: 1.0 for name, _ in tanh_net().named_parameters()}),
        "the direction of '0.weight' must be a tensor, not <float>",
    ),
    "wrong order": (
        lambda: summary([p.detach() for p in tanh_net().parameters()][::-1]),
        "the direction of '0.weight' has shape (3,), the parameter (6, 4)",
    ),
    "damping of the cubic": (
        lambda: solve_cubic(torch.eye(2), torch.ones(2), None, "1"),  # type: ignore[arg-type]
        "damping='1': must be a finite number >= 0",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_the_wrong_kind(name: str) -> None:
    refused(*VALUES[name])


@pytest.mark.parametrize("build", [newton, lambda: KFAC(tanh_net())])
def test_a_batch_by_position_is_no_closure(build: Callable[[], Any]) -> None:
    refused(lambda: build().step(classification(5)), "step: closure must be a function; a batch is")


@pytest.mark.parametrize("name", [name for name in NAMED if name != "muon" or hasattr(torch.optim, "Muon")])
def test_names_mean_the_same_on_the_command_line(name: str) -> None:
    chosen = recipe(OPTIMIZERS, "grouped_newton", "grouped_newton", f"optimizer/direction={name}")
    factory: Any = chosen.direction.build(None)
    named = [("w", torch.zeros(3, 2)), ("b", torch.zeros(3))]
    one, other = inner_groups(NAMED[name](named)), inner_groups(factory(named))
    assert len(one) == len(other)
    for (mine, here), (theirs, there) in zip(one, other, strict=True):
        assert type(mine) is type(theirs)
        assert {**here, "params": None} == {**there, "params": None}


def test_everything_that_needs_no_more_than_a_name_has_one() -> None:
    assert set(DIRECTIONS.names()) <= {*NAMED, "kfac", "pair"}


def test_values_that_are_fine_stay_fine() -> None:
    optimizer = newton(
        averaging=ExponentialAveraging(0.5), controller=Constant(), step_size=1, partition="by_layer"
    )
    assert optimizer.partition.names == ("0", "2", "4")
    parameters = [p.detach() for p in tanh_net().parameters()]
    named = {name: p.detach() for name, p in tanh_net().named_parameters()}
    torch.testing.assert_close(summary(parameters).hessian, summary(named).hessian)
