"""GroupedNewton in data-parallel training: two processes share every batch.

Run it with ``torchrun --nproc-per-node=2 examples/data_parallel.py``, or without torchrun: then the program
starts its two processes itself. They meet over Gloo, on the processor.

DistributedDataParallel averages the gradients. The optimizer averages its derivatives over the processes in
the same way: each passes its own part of the batch to ``step``, and all of them solve the same problem and
take the same step, which is that of one process with the whole batch.
"""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gnewton import GroupedNewton

EPOCHS, BATCH = 5, 100


def train() -> float:
    """The training of one process of a group; the loss of the last epoch, averaged over the processes."""
    torch.manual_seed(0)  # equal initial weights
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x[:1600] / 16.0, dtype=torch.float32), torch.tensor(y[:1600]))
    sampler: DistributedSampler = DistributedSampler(data)  # gives each process another part
    loader = DataLoader(data, BATCH // dist.get_world_size(), sampler=sampler)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)))
    optimizer = GroupedNewton(model, cross_entropy, total_steps=EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)  # another order in every epoch
        total = torch.zeros(())
        for batch in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step(batch=batch)  # this process's part of the batch
            total += loss.detach() / len(loader)
        dist.all_reduce(total)
        mean = total.item() / dist.get_world_size()
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: training loss {mean:.4f}")
    check_equal(optimizer, model)
    return mean


def check_equal(optimizer: GroupedNewton, model: nn.Module) -> None:
    """Every process has the same rates and the same parameters, to the last bit."""
    for values in (
        torch.tensor(list(optimizer.rates.values())),
        nn.utils.parameters_to_vector(model.parameters()),
    ):
        ours = values.detach().clone()
        dist.broadcast(values, src=0)
        assert torch.equal(ours, values)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes ended with equal parameters")


def spawned(rank: int, size: int, folder: str) -> None:
    """One of the processes that this program starts itself; they meet at a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    train()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # under torchrun
        dist.init_process_group("gloo")
        train()
        dist.destroy_process_group()
    else:
        with tempfile.TemporaryDirectory() as meeting:
            mp.spawn(spawned, (2, meeting), nprocs=2)
