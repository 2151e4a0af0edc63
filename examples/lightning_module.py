"""GroupedNewton in PyTorch Lightning: manual optimisation, since a step needs its batch.

Run it with ``python examples/lightning_module.py`` (``pip install lightning``). Lightning's automatic
optimisation calls ``optimizer.step(closure)`` itself and has no place for the batch. With
``automatic_optimization = False`` the training step calls ``backward`` and ``step``; logging, checkpoints,
devices and data-parallel training are Lightning's as before.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from gnewton import GroupedNewton

try:
    import lightning
except ImportError:
    sys.exit("this example needs Lightning: pip install lightning")


class Digits(lightning.LightningModule):
    """A perceptron on the digits, trained by GroupedNewton."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # see above
        self.network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))

    def configure_optimizers(self) -> GroupedNewton:
        """Lightning calls this when the parameters are on their device and the length of the run is known."""
        steps = int(self.trainer.estimated_stepping_batches)
        return GroupedNewton(self.network, cross_entropy, total_steps=steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """One step: what Lightning does in automatic optimisation, and the batch."""
        optimizer: Any = self.optimizers()
        inputs, targets = batch
        optimizer.zero_grad()
        loss = cross_entropy(self.network(inputs), targets)
        self.manual_backward(loss)  # not loss.backward(): it knows the precision and the processes
        optimizer.step(batch=batch)
        rates = {f"rate/{name}": rate for name, rate in optimizer.optimizer.rates.items()}
        self.log_dict({"train_loss": loss, **rates}, on_step=False, on_epoch=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Validation is as in any Lightning module."""
        inputs, targets = batch
        right = self.network(inputs).argmax(1) == targets
        self.log("accuracy", right.float().mean(), on_epoch=True)


def main(epochs: int = 10) -> float:
    """Train for some epochs and return the accuracy on held-out images."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    lightning.seed_everything(0, verbose=False)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y))
    train, held_out = random_split(data, [1500, 297])
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Digits()
        trainer.fit(module, DataLoader(train, batch_size=100, shuffle=True), DataLoader(held_out, 297))
    print(f"training loss {trainer.callback_metrics['train_loss']:.4f}")
    for name, value in trainer.callback_metrics.items():
        if name.startswith("rate/"):
            print(f"  {name:16} {value:.4f} (mean over the last epoch)")
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy {accuracy:.1%} on held-out images")
    return accuracy


if __name__ == "__main__":
    main()
