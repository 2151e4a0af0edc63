"""A small trainer on made-up data, built without any configuration file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.data import DataSet
from gnewton.data.tensors import Scaling, TensorSplit
from gnewton.optim.options import OptimizerRecipe, TrainingProblem
from gnewton.optim.options.baselines import LBFGS, SGD
from gnewton.optim.options.components import ConstantSchedule
from gnewton.partition import Partition
from gnewton.tasks import Classification, Regression, Task
from gnewton.training.runlog import RateLog
from gnewton.training.settings import Evaluation, Target, TrainerSettings
from gnewton.training.trainer import Trainer


def split(inputs: Tensor, targets: Tensor, seed: int = 0) -> TensorSplit:
    one = torch.ones(1, dtype=inputs.dtype)
    return TensorSplit(
        inputs, targets, Scaling(one, 0 * one, inputs.dtype), seed=seed, title="a made-up split"
    )


def classification(samples: int = 30, features: int = 5, classes: int = 3) -> DataSet:
    generator = torch.Generator().manual_seed(1)

    def part(size: int) -> TensorSplit:
        inputs = torch.randn(size, features, generator=generator, dtype=torch.float64)
        return split(inputs, inputs[:, :classes].argmax(1))

    task = Classification(input_shape=(features,), outputs=classes)
    return DataSet("made_up", task, part(samples), part(17), part(11))


def regression(samples: int = 30) -> DataSet:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(4, 2, generator=generator, dtype=torch.float64)

    def part(size: int) -> TensorSplit:
        inputs = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        return split(inputs, inputs @ weights)

    return DataSet("made_up", Regression(input_shape=(4,), outputs=2), part(samples), part(7), part(7))


def network(task: Task, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(task.input_size, 6), nn.Tanh(), nn.Linear(6, task.outputs))
    return model.double()


def settings(**changes: Any) -> TrainerSettings:
    values: dict[str, Any] = {
        "name": "test",
        "epochs": 2,
        "max_steps": None,
        "max_seconds": None,
        "batch_size": 10,
        "microbatch": None,
        "log_every": 2,
        "checkpoint_every": "1 epoch",
        "on_nonfinite": "stop",
        "divergence": 10.0,
        "max_recoveries": 10,
        "rollback_factor": 0.5,
        "device": "cpu",
        "dtype": "float64",
        "precision": "full",
        "compile": False,
        "tf32": False,
        "deterministic": False,
        "progress": "lines",
        "evaluation": Evaluation(every=1, train=True, batch_size=8, max_samples=None),
        "target": Target(metric="validation_loss", value=None),
    }
    return TrainerSettings(**values | changes)


def sgd(lr: float = 0.1, schedule: Any = None, **changes: Any) -> SGD:
    values = {
        "rates": None,
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
    } | changes
    return SGD(name="sgd", schedule=schedule or ConstantSchedule(name="constant"), lr=lr, **values)


def lbfgs() -> LBFGS:
    schedule = ConstantSchedule(name="constant")
    return LBFGS(name="lbfgs", schedule=schedule, lr=1.0, max_iter=5, history_size=5, line_search=True)


def trainer(
    folder: Path,
    data: DataSet | None = None,
    recipe: OptimizerRecipe | None = None,
    model: nn.Module | None = None,
    wrap: Callable[[torch.optim.Optimizer], torch.optim.Optimizer] = lambda optimizer: optimizer,
    **changes: Any,
) -> Trainer:
    data = data or classification()
    recipe = recipe or sgd()
    model = model or network(data.task)
    partition = Partition.per_tensor(model) if recipe.uses_partition else None
    rate_log = RateLog() if partition is not None else None
    problem = TrainingProblem(
        model=model,
        loss_fn=data.task.loss,
        partition=partition,
        curvature=lambda size: data.train.stream(size, seed=9),
        on_update=rate_log.record if rate_log is not None else lambda update: None,
    )
    return Trainer(
        model=model,
        data=data,
        optimizer=wrap(recipe.build(problem)),
        recipe=recipe,
        settings=settings(**changes),
        folder=folder,
        rate_log=rate_log,
        identity={},
    )
