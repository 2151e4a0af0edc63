"""Losses that change between two summaries in a way that shapes and module settings do not show.

Every kind returns a model, a loss and a function that changes something before the i-th summary.
"""

from __future__ import annotations

import copy
import functools
import random
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3
GENERATOR = torch.Generator().manual_seed(1)
INPUTS = torch.randn(12, 5, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(0, CLASSES, (12,), generator=GENERATOR)


def net():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))


class Model(nn.Module):
    def __init__(self, forward, **attributes):
        super().__init__()
        self.net = net()
        self.function = forward
        vars(self).update(attributes)

    def forward(self, x):
        return self.function(self, x)


def penalised(weight):
    """Cross-entropy and a penalty, whose weight a function returns at every call."""
    return lambda o, t: F.cross_entropy(o, t) + weight() * o.square().mean()


KINDS = {}


def kind(function):
    KINDS[function.__name__] = function
    return function


@kind
def number_in_a_closure():
    state = {"beta": 0.0}
    return net(), penalised(lambda: state["beta"]), lambda i: state.update(beta=0.5 * i)


@kind
def tiny_number():
    state = {"beta": 0.0}
    return net(), penalised(lambda: state["beta"]), lambda i: state.update(beta=1e-9 * i)


@kind
def attribute_of_the_loss():
    class Penalised(nn.Module):
        beta = 0.0

        def forward(self, o, t):
            return F.cross_entropy(o, t) + self.beta * o.square().mean()

    loss = Penalised()
    return net(), loss, lambda i: setattr(loss, "beta", 0.5 * i)


@kind
def label_smoothing():
    loss = nn.CrossEntropyLoss()
    return net(), loss, lambda i: setattr(loss, "label_smoothing", 0.15 * i)


@kind
def class_weights_replaced():
    loss = nn.CrossEntropyLoss(weight=torch.ones(CLASSES, dtype=torch.float64))
    return net(), loss, lambda i: setattr(loss, "weight", torch.tensor([1.0, 1.0 + i, 1.0]).double())


@kind
def class_weights_in_place():
    loss = nn.CrossEntropyLoss(weight=torch.ones(CLASSES, dtype=torch.float64))
    return net(), loss, lambda i: loss.weight.select(0, 1).fill_(1.0 + i)


@kind
def captured_tensor_in_place():
    beta = torch.zeros((), dtype=torch.float64)
    return net(), penalised(lambda: beta), lambda i: beta.fill_(0.5 * i)


@kind
def captured_tensor_read():
    beta = torch.zeros((), dtype=torch.float64)
    return net(), penalised(lambda: beta.item()), lambda i: beta.fill_(0.5 * i)


WEIGHT = 0.0


@kind
def global_number():
    return net(), penalised(lambda: WEIGHT), lambda i: globals().update(WEIGHT=0.5 * i)


@kind
def attribute_of_the_model():
    model = Model(lambda m, x: m.net(x) * m.scale, scale=1.0)
    return model, F.cross_entropy, lambda i: setattr(model, "scale", 1.0 + i)


@kind
def configuration():
    model = Model(lambda m, x: m.net(x) * m.config.scale, config=SimpleNamespace(scale=1.0))
    return model, F.cross_entropy, lambda i: setattr(model.config, "scale", 1.0 + i)


@kind
def dictionary():
    model = Model(lambda m, x: m.net(x) * m.config["scale"], config={"scale": 1.0})
    return model, F.cross_entropy, lambda i: model.config.update(scale=1.0 + i)


@kind
def switch_after_the_attribute_is_idle():
    model = Model(lambda m, x: m.net(x) * (4.0 if m.step >= 5 else 1.0), step=0)
    return model, F.cross_entropy, lambda i: setattr(model, "step", i)


@kind
def tensor_attribute_replaced():
    model = Model(lambda m, x: m.net(x) * m.scale, scale=torch.tensor(1.0))
    return model, F.cross_entropy, lambda i: setattr(model, "scale", torch.tensor(1.0 + i))


@kind
def dictionary_of_tensors():
    weights = {"penalty": torch.tensor(0.0)}
    return (
        net(),
        penalised(lambda: weights["penalty"]),
        lambda i: weights.update(penalty=torch.tensor(0.5 * i)),
    )


@kind
def teacher_in_place():
    teacher = net().double()

    def loss(o, t):
        with torch.no_grad():
            q = teacher(INPUTS[: len(o)]).softmax(1)
        return F.cross_entropy(o, t) + (o.softmax(1) - q).square().mean()

    return net(), loss, lambda i: teacher[2].weight.data.mul_(2.0)


@kind
def teacher_replaced():
    model, teachers = net(), [net().double()]

    def loss(o, t):
        with torch.no_grad():
            q = teachers[0](INPUTS[: len(o)])
        return F.cross_entropy(o, t) + (o - q).square().mean()

    return model, loss, lambda i: teachers.__setitem__(0, copy.deepcopy(model))


@kind
def proximal_term_that_is_zero():
    """Value and gradient of the term are zero, its second derivatives are not."""
    model, state = net(), {"beta": 0.0}
    anchor = {}

    def loss(o, t):
        distance = sum((p - anchor[n]).square().sum() for n, p in model.named_parameters())
        return F.cross_entropy(o, t) + state["beta"] * distance

    def change(i):
        state["beta"] = 0.5 * i
        anchor.update({n: p.detach().clone() for n, p in model.named_parameters()})

    return model, loss, change


@kind
def schedule():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))

    def change(i):
        optimizer.step()
        decay.step()

    return model, penalised(lambda: optimizer.param_groups[0]["lr"]), change


@kind
def bound_method():
    class Experiment:
        beta = 0.0

        def loss(self, o, t):
            return F.cross_entropy(o, t) + self.beta * o.square().mean()

    experiment = Experiment()
    return net(), experiment.loss, lambda i: setattr(experiment, "beta", 0.5 * i)


@kind
def partial():
    settings = SimpleNamespace(scale=1)
    loss = functools.partial(lambda o, t, settings: F.cross_entropy(o * settings.scale, t), settings=settings)
    return net(), loss, lambda i: setattr(settings, "scale", 1 + i)


@kind
def class_attribute():
    class Settings:
        scale = 1.0

    return (
        Model(lambda m, x: m.net(x) * Settings.scale),
        F.cross_entropy,
        lambda i: setattr(Settings, "scale", 1.0 + i),
    )


@kind
def curriculum():
    weights = [0.1, 0.5, 2.0, 3.0, 0.0, 1.0, 0.3, 0.2, 0.4]
    return net(), penalised(lambda: weights[0]), lambda i: weights.pop(0)


@kind
def python_randomness():
    model = Model(lambda m, x: m.net[2](m.net[1](m.net[0](x)) * (2 if random.random() < 0.5 else 1)))
    return model, F.cross_entropy, lambda i: random.seed(i)


@kind
def numpy_randomness():
    model = Model(lambda m, x: m.net(x) * (1 + np.random.rand()))
    return model, F.cross_entropy, lambda i: np.random.seed(i)


@kind
def hooks():
    model = net()

    def change(i):
        if i == 2:
            model[1].register_forward_hook(lambda module, args, out: out * 2)
        if i == 4:
            model[0].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))

    return model, F.cross_entropy, change


@kind
def module_replaced():
    model = net()

    def change(i):
        if i == 2:
            model[1] = nn.Sigmoid()
        if i == 4:
            model[1].forward = lambda x: x.tanh() * 0.3

    return model, F.cross_entropy, change


@kind
def cut_of_the_gradient():
    state = {"cut": False}

    def forward(m, x):
        h = m.net[1](m.net[0](x))
        return m.net[2](h.detach() if state["cut"] else h)

    return Model(forward), F.cross_entropy, lambda i: state.update(cut=i % 2 == 1)


@kind
def dropout_rate():
    rate = [0.1]
    model = Model(lambda m, x: m.net[2](F.dropout(m.net[1](m.net[0](x)), rate[0])))
    return model, F.cross_entropy, lambda i: rate.__setitem__(0, 0.1 * i)


@kind
def counter_in_the_model():
    def forward(m, x):
        m.calls += 1
        return m.net(x) * (1 + 0.01 * m.calls)

    return Model(forward, calls=0), F.cross_entropy, lambda i: None


@kind
def choice_by_values():
    model = Model(lambda m, x: m.net(x) * (2 if m.net(x).mean() > m.bound else 1), bound=0.0)
    return model, F.cross_entropy, lambda i: setattr(model, "bound", (-1) ** i * 100.0)
