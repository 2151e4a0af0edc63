"""The running loss: weighted by samples, and the first step at which it is not finite."""

from __future__ import annotations

import pytest
import torch

from gnewton.errors import Diverged
from gnewton.training.state import Meter


def test_meter_averages_by_samples():
    meter = Meter()
    meter.record(0, torch.tensor(1.0), torch.tensor(3), 10)
    meter.read()
    meter.record(1, torch.tensor(4.0), torch.tensor(1), 5)
    meter.read()
    assert (meter.loss, meter.accuracy(), meter.samples, meter.latest) == (2.0, 4 / 15, 15, 4.0)
    meter.reset()
    assert meter.samples == 0
    assert meter.accuracy() is None


def test_meter_without_right_answers():
    meter = Meter()
    meter.record(0, torch.tensor(1.0), None, 10)
    meter.read()
    assert meter.accuracy() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 1, 6])
def test_meter_names_the_step(bad, position):
    meter = Meter()
    for step in range(100, 103):
        meter.record(step, torch.tensor(1.0), None, 1)
    meter.read()
    for step in range(103, 110):
        meter.record(step, torch.tensor(bad if step == 103 + position else 1.0), None, 1)
    with pytest.raises(Diverged, match=f"the training loss is {bad} at step {103 + position}$"):
        meter.read()
