"""``gnewton inspect``: its files against direct computation, its plots, its refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from gnewton.experiment.build import CURVATURE_STREAM, open_point
from gnewton.partition import Partition
from gnewton.report.inspection_report import read_inspection
from gnewton.report.plots.inspection_plots import (
    distances_figure,
    hessian_figure,
    rates_figure,
    spectrum_figure,
)
from gnewton.report.plots.loss_along_plots import along_figure
from gnewton.summary import summarize
from tests.conftest import SMALL, SMALL_BASELINE

TINY = ["model.widths=[8,6]", "data.subset=60", "trainer.dtype=float64", "trainer.device=cpu"]
STEMS = ("hessian", "rates", "spectrum", "distances")


@pytest.fixture
def inspected(cli, tmp_path):
    """inspected(*arguments) -> the folder that `gnewton inspect` wrote."""

    def ask(*arguments):
        answer = cli(["inspect", *arguments, "-o", str(tmp_path / "found")])
        assert (answer.code, answer.err) == (0, "")
        return tmp_path / "found"

    return ask


def direct(model, partition, inputs, targets, direction=None):
    if direction is None:
        grads = torch.autograd.grad(cross_entropy(model(inputs), targets), list(model.parameters()))
        direction = dict(zip([name for name, _ in model.named_parameters()], grads, strict=True))
    return summarize(model, cross_entropy, inputs, targets, partition, direction, engine="reference")


def test_the_full_set_at_initial_weights(inspected, compose):
    folder = inspected(*TINY, "--full", "--no-plots")
    point = open_point(compose(TINY), None)
    (inputs, targets) = next(point.data.train.in_order(60))
    expected = direct(point.model, Partition.per_tensor(point.model), inputs, targets)
    with np.load(folder / "summary.npz") as arrays:
        assert arrays["hessian"] == pytest.approx(expected.hessian.numpy(), rel=1e-9, abs=1e-12)
        assert arrays["gradient"] == pytest.approx(expected.gradient.numpy(), rel=1e-9)
        assert arrays["third"] == pytest.approx(expected.third.numpy(), rel=1e-8, abs=1e-12)
        assert arrays["norms"] ** 2 == pytest.approx(arrays["gradient"], rel=1e-9)  # u is the gradient
        hessian, names = arrays["hessian"], arrays["groups"].tolist()
        rates = arrays["rate_cubic"]
    groups = pd.read_csv(folder / "groups.csv")
    assert groups["group"].tolist() == names == list(point.partition.names)
    assert groups["curvature"].to_numpy() == pytest.approx(hessian.diagonal(), rel=1e-15)
    assert groups["rate_cubic"].to_numpy() == pytest.approx(rates, rel=1e-15)
    assert groups["layer"].tolist() == [0, 0, 1, 1, 2, 2]
    table = pd.read_csv(folder / "hessian.csv", index_col="group")
    assert (table.index.tolist(), table.columns.tolist()) == (names, names)
    assert table.to_numpy() == pytest.approx(hessian, rel=1e-15)
    scaled = pd.read_csv(folder / "hessian_scaled.csv", index_col="group").to_numpy()
    assert pd.read_csv(folder / "spectrum.csv")["scaled"].to_numpy() == pytest.approx(
        np.linalg.eigvalsh(scaled), abs=1e-12
    )
    about = json.loads((folder / "inspection.json").read_text())
    assert about["loss"] == pytest.approx(float(expected.loss))
    assert (about["samples"], about["taken_on"]) == (60, "all 60 training samples")


def test_batches_of_a_run_along_its_own_direction(inspected, run, tmp_path):
    """GroupedNewton with momentum, restored from the checkpoint: u = 0.9 m + 0.1 g."""
    options = ["optimizer/direction=average", "trainer.epochs=2", "trainer.dtype=float64"]
    report = run([*SMALL, *options], tmp_path / "runs")
    folder = inspected(
        str(report.folder), "--direction=optimizer", "--batches=2", "--batch-size=20", "--no-plots"
    )
    from gnewton.experiment.resume import saved_config

    point = open_point(saved_config(report.folder, "x"), report.folder / "checkpoint" / "last.pt")
    stream = point.data.train.stream(20, seed=CURVATURE_STREAM)
    batches = [next(stream), next(stream)]
    inputs, targets = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    gradients = torch.autograd.grad(
        cross_entropy(point.model(inputs), targets), list(point.model.parameters())
    )
    saved = point.optimizer_state["grouped_newton"]["directions"]["members"][0]["state"]
    direction = {
        name: 0.9 * saved[i]["momentum_buffer"] + 0.1 * g
        for i, ((name, _), g) in enumerate(zip(point.model.named_parameters(), gradients, strict=True))
    }
    expected = direct(point.model, point.partition, inputs, targets, direction)
    with np.load(folder / "summary.npz") as arrays:
        assert arrays["gradient"] == pytest.approx(expected.gradient.numpy(), rel=1e-8, abs=1e-14)
        assert arrays["hessian"] == pytest.approx(expected.hessian.numpy(), rel=1e-7, abs=1e-12)
    about = json.loads((folder / "inspection.json").read_text())
    assert about["step"] == 6
    assert "2 batches of 20" in about["taken_on"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_baseline_has_a_direction_too(inspected, run, tmp_path, optimizer):
    overrides = [*SMALL_BASELINE, f"optimizer={optimizer}", "trainer.epochs=1", "trainer.dtype=float64"]
    report = run(overrides, tmp_path / "runs")
    folder = inspected(
        str(report.folder / "checkpoint" / "last.pt"), "--full", "--direction=optimizer", "--no-plots"
    )
    with np.load(folder / "summary.npz") as arrays:
        assert (arrays["gradient"] != 0).all()
        assert arrays["norms"] ** 2 != pytest.approx(arrays["gradient"], rel=1e-3)


def test_a_run_can_be_seen_through_another_partition(inspected, run, tmp_path):
    report = run([*SMALL, "trainer.max_steps=2"], tmp_path / "runs")
    fine = read_inspection(inspected(str(report.folder), "--full", "--no-plots"))
    coarse = read_inspection(inspected(str(report.folder), "partition=by_layer", "--full", "--no-plots"))
    assert coarse.names == ["hidden1", "output"]
    merged = fine.hessian.reshape(2, 2, 2, 2).sum((1, 3))  # (weight, bias) of two layers
    assert coarse.hessian == pytest.approx(merged, rel=1e-4, abs=1e-9)


def test_the_default_place_is_in_the_run(cli, run, tmp_path):
    report = run([*SMALL, "trainer.max_steps=2"], tmp_path / "runs")
    answer = cli(["inspect", str(report.folder), "--no-plots", "--batch-size=20"])
    assert answer.code == 0
    assert (report.folder / "inspection_step2" / "groups.csv").is_file()
    assert "hidden1.weight" in answer.out
    assert "off the diagonal" in answer.out


def test_the_plots(inspected):
    folder = inspected(*TINY, "--full")
    for stem in STEMS:
        for suffix in ("png", "svg"):
            assert (folder / f"{stem}.{suffix}").stat().st_size > 2000
    files = read_inspection(folder)
    left, right = hessian_figure(files).axes[:2]
    for axis in (left, right):
        (image,) = axis.get_images()
        low, high = image.get_clim()
        assert low == -high  # symmetric: white is zero
        assert [label.get_text() for label in axis.get_xticklabels()] == files.names
        assert image.get_array().shape == (6, 6)
    assert np.asarray(left.get_images()[0].get_array()) == pytest.approx(files.hessian)
    assert [label.get_text() for label in left.get_yticklabels()] == files.names
    bars = rates_figure(files).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(files.groups["rate_cubic"].tolist())
    eigenvalues = spectrum_figure(files).axes[1].lines
    assert sum(len(line.get_xdata()) for line in eigenvalues[:2]) == 6
    heights = [bar.get_height() for bar in distances_figure(files).axes[0].patches]
    assert heights == pytest.approx([*files.distances["share"], *files.distances["scaled_share"]])


def test_the_loss_along_the_groups(inspected):
    """Its derivatives are those of the summary, up to the sign: the rate moves against u."""
    folder = inspected(*TINY, "--full", "--order=5")
    files = read_inspection(folder)
    assert files.orders == (2, 3, 5)
    for k, column in enumerate(("gradient", "curvature", "third"), start=1):
        expected = (-1) ** k * files.groups[column].to_numpy()
        assert files.reach[f"derivative_{k}"].to_numpy() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    panels = along_figure(files).axes
    assert [axis.get_title(loc="left") for axis in panels if axis.get_visible()] == files.names
    at = files.along["group"] == files.names[0]
    assert panels[0].lines[0].get_ydata() == pytest.approx(files.along["loss"][at].tolist())
    assert (folder / "along.png").stat().st_size > 2000
    assert (files.reach["holds_5"].abs() >= files.reach["holds_2"].abs()).mean() > 0.5


def test_a_function_without_data(inspected):
    folder = inspected("experiment=rosenbrock")
    assert json.loads((folder / "inspection.json").read_text())["samples"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["."], ".: it holds no checkpoint/last.pt; give a run folder or a checkpoint in one"),
        (["a", "b"], "inspect: b: only one run or checkpoint is looked at"),
        (["model=lenet"], "model=lenet: needs images"),
        (["modl=mlp"], "did you mean 'model'?"),
        (["trainer.epochs=3"], "trainer.epochs=3: has no effect on gnewton inspect"),
        (["name=x"], "name=x: has no effect on gnewton inspect"),
        (["--full", "--batches=2"], "--full takes all samples; leave out --batches and --batch-size"),
        (["--batches=0"], "argument --batches: 0: must be a whole number >= 1"),
        (["--batch-size=5000"], "--batch-size=5000: must be <= 1200, the training samples of data=digits"),
        (["--internal-damping=-1"], "argument --internal-damping: -1: must be a finite number >= 0"),
        (["--order=2"], "argument --order: invalid choice: 2 (choose from 3, 4, 5, 6, 7, 8)"),
        (["--direction=x"], "argument --direction: invalid choice: 'x'"),
        (
            ["optimizer=lbfgs", "--direction=optimizer"],
            "optimizer=lbfgs has no direction that is known; use gradient",
        ),
    ],
)
def test_bad_arguments_are_refused(cli, arguments, message):
    answer = cli(["inspect", *arguments])
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_a_run_keeps_its_configuration(cli, run, tmp_path):
    report = run([*SMALL, "trainer.max_steps=1"], tmp_path / "runs")
    answer = cli(["inspect", str(report.folder), "model.widths=[3]"])
    assert answer.code == 2
    assert (
        "model.widths=[3]: a run keeps its configuration; only these can be chosen: partition" in answer.err
    )
