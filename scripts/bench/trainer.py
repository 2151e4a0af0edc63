"""What the trainer adds to a bare loop, and how long a command takes to its first step (docs/performance.md).

    python scripts/bench/trainer.py [--only mlp,lenet] [--steps 25] [--repeats 20] [--out FILE.csv]
    python scripts/bench/trainer.py --start [--repeats 3] [--out FILE.csv]

Short epochs of SGD on random images, in one process with one thread: a bare loop over tensors, a loop over a
DataLoader, this trainer with its default options, and Lightning, if it is installed, without progress bar,
logger and checkpoints. They take turns epoch by epoch. The least processor time of each counts, and the
median of its ratios to the bare loop's in the same round. The trainer's evaluations and checkpoints lie
between epochs and do not count.

``--start`` times commands in processes of their own, by wall clock and processor time.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gnewton.data import DataSet
from gnewton.data.tensors import Scaling, TensorSplit
from gnewton.experiment.places import config_folder
from gnewton.experiment.prepare import settings_from
from gnewton.experiment.schema import register_schemas
from gnewton.optim.options import TrainingProblem
from gnewton.tasks import Classification
from gnewton.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))
from startup import start_table
from summary import CASES, Case, write_table

BATCH, LR, MOMENTUM = 100, 0.01, 0.9
SIDES = ("bare", "dataloader", "trainer", "lightning")
NETWORKS = ("mlp", "lenet")


def made_up(case: Case, samples: int) -> DataSet:
    """A data set of random pixels, held as bytes like MNIST's and CIFAR-10's."""
    generator = torch.Generator().manual_seed(1)

    def part(size: int, title: str) -> TensorSplit:
        pixels = torch.randint(0, 256, (size, *case.shape), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (size,), generator=generator)
        channels = (case.shape[0], 1, 1)
        scaling = Scaling(torch.full(channels, 127.5), torch.full(channels, -1.0), torch.float32)
        return TensorSplit(pixels, labels, scaling, seed=0, title=title)

    task = Classification(input_shape=case.shape, outputs=10)
    return DataSet(
        "made_up", task, part(samples, "train"), part(samples, "validation"), part(samples, "test")
    )


def bare(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """An epoch of the loop that anyone writes first: tensors in memory, a random order, a sum of losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def epoch() -> float:
        total = torch.zeros(())
        for indices in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[indices]), y[indices])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total)

    return epoch


def over_loader(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """An epoch of the same loop over a DataLoader in this process."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)

    def epoch() -> float:
        total = torch.zeros(())
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total)

    return epoch


def by_lightning(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float] | None:
    """An epoch by Lightning, which returns its processor time; None if that is not installed."""
    try:
        lightning: Any = importlib.import_module("lightning")
    except ImportError:
        return None

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)

        def on_train_epoch_start(self) -> None:
            self.start = time.process_time()

        def on_train_epoch_end(self) -> None:
            self.seconds = time.process_time() - self.start

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)

    def epoch() -> float:
        module = Module()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=1, accelerator="cpu", devices=1, enable_checkpointing=False, **quiet
            )
            trainer.fit(module, loader)
        return float(module.seconds)

    return epoch


class TimedTrainer(Trainer):
    """A trainer that lets the other sides make an epoch before each of its own, and times both."""

    rivals: dict[str, Callable[[], object]]
    seconds: dict[str, list[float]]

    def _train_epoch(self, progress: Any) -> str:
        for name, rival in self.rivals.items():
            gc.collect()  # nobody pays for the garbage of the side before
            start = time.process_time()
            own = rival()
            spent = time.process_time() - start
            self.seconds.setdefault(name, []).append(float(own) if name == "lightning" else spent)  # type: ignore[arg-type]
        gc.collect()
        start = time.process_time()
        status = super()._train_epoch(progress)
        self.seconds.setdefault("trainer", []).append(time.process_time() - start)
        return status


def measure(case: Case, steps: int, repeats: int) -> list[dict[str, object]]:
    """A row for each side."""
    register_schemas()
    samples = steps * BATCH
    overrides = ["optimizer=sgd", f"optimizer.lr={LR}", f"optimizer.momentum={MOMENTUM}"]
    overrides += [f"trainer.epochs={repeats}", "trainer.progress=lines"]
    overrides.append(f"trainer.evaluation.every={repeats}")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = settings_from(compose("config", overrides=overrides))
    data = made_up(case, samples)
    torch.manual_seed(0)
    models = {side: case.build() for side in SIDES}
    inputs, targets = data.train.batch(data.train.order("all"), 0, samples)  # type: ignore[attr-defined]
    rivals: dict[str, Any] = {
        "bare": bare(models["bare"], inputs, targets),
        "dataloader": over_loader(models["dataloader"], inputs, targets),
        "lightning": by_lightning(models["lightning"], inputs, targets),
    }
    optimizer = settings.optimizer.build(
        TrainingProblem(
            model=models["trainer"], loss_fn=data.task.loss, partition=None,
            curvature=lambda size: (), on_update=lambda update: None,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimedTrainer(
            model=models["trainer"], data=data, optimizer=optimizer, recipe=settings.optimizer,
            settings=settings.trainer, folder=Path(folder), rate_log=None, identity={},
        )  # fmt: skip
        trainer.rivals = {name: rival for name, rival in rivals.items() if rival is not None}
        trainer.seconds = {}
        trainer.fit()
    least = {name: min(values) for name, values in trainer.seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, trainer.seconds["bare"], strict=True))
        for name, values in trainer.seconds.items()
    }
    return [
        {
            "network": case.name,
            "side": side,
            "step_ms": 1e3 * least[side] / steps if side in least else "not installed",
            "times_bare": least[side] / least["bare"] if side in least else "",
            "times_bare_median": ratios.get(side, ""),
            "rounds": repeats,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        for side in SIDES
    ]


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, comma-separated")
    parser.add_argument("--steps", type=int, default=25, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=0, help="epochs of each side, or calls; 0: 20, or 3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", action="store_true", help="time commands up to their first step instead")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/trainer.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.start:
        rows = start_table(options.repeats or 3)
    else:
        rows = []
        for case in CASES:
            if case.batch == BATCH and case.name in NETWORKS and case.name in options.only.split(","):
                rows += measure(case, options.steps, options.repeats or 20)
        if not rows:
            parser.error(f"--only={options.only}: must be some of {', '.join(NETWORKS)}")
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    write_table(options.out, rows)


if __name__ == "__main__":
    main()
