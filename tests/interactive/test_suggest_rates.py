"""``gnewton.suggest_rates``: agreement with its parts, any loader, no side effects on the model."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gnewton
from gnewton.errors import InputError
from gnewton.inspection.measurement import OptimizerDirection
from gnewton.inspection.suggestion import observe, suggest
from gnewton.optim.options.baselines import as_mapping, read_rates
from gnewton.partition import Partition
from tests.optim.problems import classification, tanh_net

LOADER = [classification(20, seed) for seed in range(5)]
BRIEF = {"batches": 4, "warmup": 3}


class Normalised(nn.Module):
    """Batch normalisation and dropout: buffers and random draws."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
        ).double()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x)


@pytest.mark.parametrize("along", ["step", "fresh"])
def test_suggest_rates_agrees_with_observe_and_suggest(along):
    model = tanh_net()
    factory = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
    parts = [Partition.by_layer(model), Partition.single(model)]
    endless = iter(LOADER * 4)
    names = [name for name, _ in model.named_parameters()]
    direction = OptimizerDirection(model, factory, names)
    groups, whole = observe(
        model, cross_entropy, parts, direction, endless, None if along == "fresh" else endless, **BRIEF
    )
    expected = suggest(groups, whole, internal_damping=1.0, proximal=10.0, step_size=1.0)
    suggestion = gnewton.suggest_rates(
        tanh_net(), cross_entropy, LOADER, optimizer="sgd", partition="by_layer", along=along, **BRIEF
    )
    assert suggestion.suggestion.rates.tolist() == expected.rates.tolist()
    assert suggestion.rate == expected.single
    assert list(suggestion.rates) == list(parts[0].names)


def test_along_fresh_it_is_the_line_search_of_the_gradient_on_its_own_batch_over_the_weight_of_momentum():
    model, (x, y) = tanh_net(), LOADER[0]
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(cross_entropy(model(x), y), parameters, create_graph=True)
    square = sum((g * g.detach()).sum() for g in gradient)
    curved = torch.autograd.grad(square, parameters)
    curvature = sum((h * g.detach()).sum() for h, g in zip(curved, gradient, strict=True))
    warmup, momentum = 60, 0.5
    suggestion = gnewton.suggest_rates(
        model,
        cross_entropy,
        [(x, y)],
        optimizer=partial(torch.optim.SGD, momentum=momentum),
        along="fresh",
        batches=1,
        warmup=warmup,
        internal_damping=0.0,
    )
    assert suggestion.rate == pytest.approx(float((square / curvature).detach()) * (1 - momentum), rel=1e-6)


def test_the_model_is_left_unchanged():
    model = Normalised()
    x, y = LOADER[0]
    cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = {p: (p.grad, p.grad.clone()) for p in model.parameters()}
    buffers = dict(model.named_buffers())
    stream, calls = torch.get_rng_state(), model.calls
    for optimizer in ("adam", lambda named: gnewton.KFAC(model, params=named)):
        gnewton.suggest_rates(model, cross_entropy, LOADER, optimizer=optimizer, **BRIEF)
        gnewton.inspect(model, cross_entropy, LOADER, direction=optimizer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is g and torch.equal(g, kept) for p, (g, kept) in gradients.items())
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    assert torch.equal(stream, torch.get_rng_state())
    assert (model.training, model.calls) == (True, calls)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_bias_before_batch_normalisation_does_not_stop_the_others():
    """The loss does not depend on it: without leaving it out the model has no minimiser, for any group."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    suggestion = gnewton.suggest_rates(model, cross_entropy, LOADER, optimizer="sgd", **BRIEF)
    assert suggestion.suggestion.from_solve.tolist()[0]
    assert not suggestion.suggestion.from_solve.tolist()[1]
    inspected = gnewton.inspect(model, cross_entropy, LOADER)
    assert inspected.rates["cubic"].notna().all()
    assert inspected.rates.loc["0.bias"].tolist() == [0, 0, 0]


def test_an_optimizer_with_its_state_goes_on_from_it_and_stays_as_it_is():
    model = tanh_net()
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": 0.1 * (i + 1), "betas": (0.8, 0.99)} for i, p in enumerate(model.parameters())]
    )
    for x, y in LOADER:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    suggestion = gnewton.suggest_rates(model, cross_entropy, LOADER, optimizer=optimizer, batches=2, warmup=0)
    names = [name for name, _ in model.named_parameters()]
    unit = {**saved, "param_groups": [{**group, "lr": 1.0} for group in saved["param_groups"]]}
    factory = partial(torch.optim.Adam, lr=1.0, betas=(0.8, 0.99))
    one_group = {**unit, "param_groups": [{**unit["param_groups"][0], "params": list(range(len(names)))}]}
    endless = iter(LOADER)
    groups, whole = observe(
        model,
        cross_entropy,
        [Partition.per_tensor(model), Partition.single(model)],
        OptimizerDirection(model, factory, names, one_group),
        endless,
        endless,
        batches=2,
        warmup=0,
    )
    expected = suggest(groups, whole, internal_damping=1.0, proximal=10.0, step_size=1.0)
    assert suggestion.suggestion.rates.tolist() == expected.rates.tolist()
    after = optimizer.state_dict()
    assert after["param_groups"] == saved["param_groups"]
    assert all(
        torch.equal(after["state"][i][key], value)
        for i, state in saved["state"].items()
        for key, value in state.items()
    )


def test_the_groups_make_an_optimizer_and_the_files_those_of_the_command_line(tmp_path):
    model = tanh_net()
    suggestion = gnewton.suggest_rates(model, cross_entropy, LOADER, **BRIEF)
    optimizer = torch.optim.Adam(suggestion.param_groups())
    assert [group["lr"] for group in optimizer.param_groups] == list(suggestion.rates.values())
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(model.parameters())
    table = suggestion.to_frame()
    assert table.loc["0.weight", "rate"] == suggestion.rates["0.weight"]
    assert table.loc["(all)", "rate"] == suggestion.rate
    written = {path.name for path in suggestion.save(tmp_path)}
    assert written == {"rates.yaml", "suggestion.csv", "summaries.npz", "rates.png", "rates.svg"}
    assert as_mapping(read_rates(tmp_path / "rates.yaml")) == suggestion.suggestion.by_parameter(
        suggestion.partition
    )
    assert "0.weight" in repr(suggestion)
    assert suggestion._repr_html_().count("data:image/png;base64,") == 1
    assert suggestion.plot()._repr_png_()[:4] == b"\x89PNG"


class ByName(nn.Module):
    """Called with keywords; returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tanh_net()

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        outputs = self.net(features)
        return outputs if labels is None else cross_entropy(outputs, labels)


def test_batches_of_every_form_give_the_same():
    plain = gnewton.suggest_rates(tanh_net(), cross_entropy, LOADER, **BRIEF)
    named = gnewton.suggest_rates(ByName(), cross_entropy, [({"features": x}, y) for x, y in LOADER], **BRIEF)
    whole = gnewton.suggest_rates(
        ByName(),
        lambda outputs, batch: outputs,
        [{"features": x, "labels": y} for x, y in LOADER],
        forward=lambda model, batch: model(**batch),
        **BRIEF,
    )
    assert named.rate == whole.rate == plain.rate
    assert [*named.rates.values()] == [*whole.rates.values()] == [*plain.rates.values()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": []}, "loader: it holds no batch"),
        ({"loader": iter(LOADER)}, "it cannot be started again"),
        ({"loader": [LOADER[0][0]]}, "loader: a batch must be .inputs, targets."),
        ({"loader": 3}, "loader=<int>: must be an iterable"),
        ({"optimizer": "adan"}, "optimizer=adan: must be one of .*; did you mean 'adam'"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)}, "must train exactly"),
        ({"along": "gradient"}, "along=gradient: must be one of fresh, step"),
        ({"batches": 0}, "batches=0"),
        ({"lr": 0.1}, "lr"),
    ],
)
def test_mistakes_are_answered_in_one_line(change, message):
    arguments = {"loader": LOADER, **BRIEF, **change}
    with pytest.raises((InputError, TypeError), match=message):
        gnewton.suggest_rates(tanh_net(), cross_entropy, **arguments)
