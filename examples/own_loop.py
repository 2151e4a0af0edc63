"""GroupedNewton in a training loop of your own: a small network on the digits of scikit-learn.

Run it with ``python examples/own_loop.py``. Compared with a loop for SGD or Adam, one line differs:
``optimizer.step(batch=(inputs, targets))``. The batch is needed because every tenth step differentiates the
loss on it up to the third order, to renew the learning rates.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gnewton import GroupedNewton

EPOCHS, BATCH = 10, 100


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,500 training and 297 test images of 8×8 pixels, scaled to [0, 1], and their labels."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target[order])
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


def network() -> nn.Sequential:
    """Two convolutions and a linear layer: six tensors, hence six groups with a rate each."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def main() -> float:
    """Train, print the loss and the rates, and return the accuracy on the test images."""
    torch.manual_seed(0)
    inputs, targets, test_inputs, test_targets = digits()
    model = network()

    # The length of the run is known, so say it: the rates then fall to 0 towards its end, which removes the
    # noise of the last batches. Nothing else has to be chosen.
    steps = EPOCHS * (len(inputs) // BATCH)
    optimizer = GroupedNewton(model, cross_entropy, total_steps=steps)

    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(inputs)).split(BATCH):
            batch = inputs[chosen], targets[chosen]
            optimizer.zero_grad()
            loss = cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step(batch=batch)
            total += loss.item() * len(chosen)
        largest = max(optimizer.rates, key=optimizer.rates.__getitem__)
        print(
            f"epoch {epoch + 1:2}: training loss {total / len(inputs):.4f}, "
            f"largest rate {optimizer.rates[largest]:.4f} of {largest}"
        )

    with torch.no_grad():
        accuracy = (model(test_inputs).argmax(1) == test_targets).float().mean().item()
    print(f"test accuracy {accuracy:.1%}")

    # A checkpoint is what it is for every torch optimizer. It includes the averages and the rates in force,
    # so a resumed training goes on exactly as if it had not stopped.
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    restored = network()
    restored.load_state_dict(checkpoint["model"])
    again = GroupedNewton(restored, cross_entropy, total_steps=steps)
    again.load_state_dict(checkpoint["optimizer"])
    assert again.rates == optimizer.rates
    return accuracy


if __name__ == "__main__":
    main()
