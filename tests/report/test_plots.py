"""The plots: what is on their axes, and that they come out as images."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from gnewton.errors import InputError
from gnewton.report.comparison import compare
from gnewton.report.curves import find_profile, find_sensitivities
from gnewton.report.plots.comparison_plots import (
    comparison_plots,
    profile_figure,
    sensitivity_figure,
    write_plots,
)
from gnewton.report.plots.style import COLORS, DASHES, looks, save, slug
from gnewton.report.plots.training_plots import LEGEND_UP_TO, progress_figure, rates_figure, step_figure
from tests.report.builders import falling, grouped_newton, row, update, write_run
from tests.report.sweeps import GROUPS, compared, rows_of

METRICS = [f"{split} {kind}" for kind in ("loss", "accuracy") for split in ("train", "validation", "test")]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return compared(tmp_path_factory.mktemp("sweep"))


def _texts(canvas: Figure) -> list[str]:
    return [text.get_text() for legend in canvas.legends for text in legend.get_texts()]


def _titles(canvas: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in canvas.axes]


def _line(axis, color: str, x: Sequence[float]):
    """The data of the only thick line of a colour that runs over x."""
    lines = [
        line
        for line in axis.lines
        if to_hex(line.get_color()) == color.lower()
        and line.get_linewidth() > 1
        and len(line.get_xdata()) == len(x)
    ]
    assert len(lines) == 1
    assert list(lines[0].get_xdata()) == pytest.approx(list(x))
    return np.asarray(lines[0].get_ydata())


@pytest.mark.parametrize(("x", "label"), [("epoch", "epochs"), ("train_seconds", "training seconds")])
def test_progress_has_the_right_axes(x, label, sweep):
    canvas = progress_figure(sweep.setups, x, "mlp digits")
    assert _titles(canvas) == METRICS
    assert {axis.get_xlabel() for axis in canvas.axes} == {label}
    assert [axis.get_ylabel() for axis in canvas.axes] == ["loss", "", "", "accuracy", "", ""]
    assert [axis.get_yscale() for axis in canvas.axes] == ["log"] * 3 + ["linear"] * 3
    assert all(axis.get_xscale() == "linear" and axis.get_xlim()[0] == 0 for axis in canvas.axes)
    assert canvas.axes[3].yaxis.get_major_formatter()(0.25) == "25 %"
    assert _texts(canvas) == ["grouped_newton", "sgd lr=0.01", "sgd lr=0.1", "sgd lr=1"]
    assert canvas.get_suptitle() == "mlp digits"


def test_progress_against_epochs_shows_medians_bands_and_every_run(sweep):
    """Losses speed⁻ᵉ (1 + seed/10): the median is that of seed 1, the band goes from seed 0 to seed 2."""
    canvas = progress_figure(sweep.setups, "epoch")
    axis, epochs = canvas.axes[1], np.arange(1.0, 5)
    for color, speed in zip(COLORS, (2, 1.2, 1.5), strict=False):
        assert _line(axis, color, epochs) == pytest.approx(1.1 * 1.1 * speed**-epochs)
    thin = [line for line in axis.lines if line.get_linewidth() < 1]
    assert len(thin) == 12
    corners = axis.collections[0].get_paths()[0].vertices
    assert corners[:, 0].min() == 1
    assert corners[:, 0].max() == 4
    at_end = corners[corners[:, 0] == 4, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((1.1 / 16, 1.2 * 1.1 / 16))


def test_progress_against_seconds_is_on_a_common_grid(sweep):
    """Epoch e of seed s ends at 3 e (1 + s/20) s: all three runs are under way from 3.3 s to 12 s."""
    canvas = progress_figure(sweep.of_problem("mlp digits")[:1], "train_seconds")
    (line,) = [line for line in canvas.axes[0].lines if line.get_linewidth() > 1]
    x = np.asarray(line.get_xdata())
    assert (x[0], x[-1]) == pytest.approx((3.3, 12))
    curves = [
        np.interp(x, 3 * np.arange(1, 5) * (1 + seed / 20), 2.0 ** -np.arange(1, 5) * (1 + seed / 10))
        for seed in range(3)
    ]
    assert np.asarray(line.get_ydata()) == pytest.approx(np.median(curves, axis=0))


def test_a_cross_marks_where_a_run_broke_down(sweep):
    canvas = progress_figure(sweep.setups, "epoch")
    crosses = [line for line in canvas.axes[1].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[2]] * 3
    assert {to_hex(line.get_color()) for line in crosses} == {COLORS[3].lower()}


def test_one_run_is_one_thick_line_without_a_band(tmp_path):
    write_run(tmp_path, "run", rows=rows_of(2, 0))
    canvas = progress_figure(compare([tmp_path]).setups, "epoch")
    assert [len(axis.lines) for axis in canvas.axes] == [1] * 6
    assert all(not axis.collections for axis in canvas.axes)


def test_one_row_is_a_dot(tmp_path):
    write_run(tmp_path, "run", rows=rows_of(2, 0, epochs=1))
    canvas = progress_figure(compare([tmp_path]).setups, "epoch")
    assert {line.get_marker() for axis in canvas.axes for line in axis.lines} == {"o"}


def test_only_what_was_measured_has_axes(tmp_path):
    write_run(tmp_path, "run", rows=falling([1.0, 0.5]))
    assert _titles(progress_figure(compare([tmp_path]).setups, "epoch")) == ["validation loss"]


def test_a_loss_that_is_not_positive_has_a_linear_axis(tmp_path):
    write_run(tmp_path, "run", rows=falling([1.0, -0.5]))
    assert progress_figure(compare([tmp_path]).setups, "epoch").axes[0].get_yscale() == "linear"


def test_runs_without_rows_leave_no_plot(tmp_path):
    write_run(tmp_path, "run", result=None)
    comparison = compare([tmp_path])
    assert progress_figure(comparison.setups, "epoch") is None
    assert write_plots(comparison, tmp_path / "plots") == []


# ---- rates


def test_rates_have_the_right_axes_and_values(sweep):
    canvas = rates_figure(sweep.setups[0])
    (axis,) = canvas.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("training steps", "learning rate of the group")
    assert axis.get_yscale() == "log"
    assert _titles(canvas) == ["grouped_newton: rates, median of 3 runs"]
    assert _texts(canvas) == list(GROUPS)
    for line, (name, rate) in zip(axis.lines, GROUPS.items(), strict=True):
        assert list(line.get_xdata()) == [10, 20, 30, 40]  # without the warm-up, up to the last step
        assert list(line.get_ydata()) == pytest.approx([2 * rate, 3 * rate, 4 * rate, 4 * rate])
        assert line.get_linestyle() == ("--" if name.endswith("bias") else "-")
        assert line.get_drawstyle() == "steps-post"


def test_there_are_no_rates_without_rates(sweep):
    assert rates_figure(sweep.setups[1]) is None


@pytest.mark.parametrize(
    ("values", "scale"), [([0.5, 0.0], "symlog"), ([0.5, -0.1], "symlog"), ([0, 0], "linear")]
)
def test_rates_that_are_not_positive_are_shown(values, scale, tmp_path):
    rates = update(1, 0, {"a": values[0], "b": values[1]})
    write_run(tmp_path, "run", grouped_newton(), rows=falling([1.0]), rates=rates)
    (axis,) = rates_figure(compare([tmp_path]).setups[0]).axes
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert low <= min(values) <= max(values) <= high


def test_many_groups_have_a_colour_bar(tmp_path):
    rates = update(1, 0, {f"layer{number}.weight": 0.1 + number for number in range(LEGEND_UP_TO + 1)})
    write_run(tmp_path, "run", grouped_newton(), rows=falling([1.0]), rates=rates)
    canvas = rates_figure(compare([tmp_path]).setups[0])
    assert canvas.legends == []
    assert canvas.axes[1].get_ylabel().startswith("place of the group in the partition")
    bar = canvas.axes[1].collections[-1]  # it has the colours of the lines
    for place, line in enumerate(canvas.axes[0].lines, start=1):
        assert bar.cmap(bar.norm(place)) == pytest.approx(line.get_color(), abs=0.01)


# ---- sensitivity and profile


def test_sensitivity_has_the_right_axes_and_values(sweep):
    canvas = sensitivity_figure(*find_sensitivities(sweep.setups))
    (axis,) = canvas.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("learning rate", "final validation loss")
    assert _titles(canvas) == ["mlp digits"]
    assert _texts(canvas) == ["sgd", "diverged or failed"]
    assert _line(axis, COLORS[0], [0.01, 0.1]) == pytest.approx([1.1 * 1.1 * 1.2**-4, 1.1 * 1.1 * 1.5**-4])
    points = {line.get_xdata()[0]: len(line.get_xdata()) for line in axis.lines if line.get_marker() == "o"}
    assert points == {0.01: 3, 0.1: 3}
    (lost,) = [line for line in axis.lines if line.get_marker() == "^"]
    assert list(lost.get_xdata()) == [1.0]


def test_sensitivity_to_the_damping_says_so(tmp_path):
    for step_size in (0.1, 0.3):
        write_run(tmp_path, str(step_size), grouped_newton(step_size=step_size), rows=falling([1.0]))
    (axis,) = sensitivity_figure(*find_sensitivities(compare([tmp_path]).setups)).axes
    assert axis.get_xlabel() == "learning rate (GroupedNewton: step size λ₁)"


def test_profiles_have_the_right_axes_and_values(sweep):
    """GroupedNewton has 0.55 (1 + s/10) after one epoch and needs two; SGD 0.1 two or, for s > 0, three."""
    profiles = [find_profile(sweep, measure) for measure in ("target_steps", "target_seconds")]
    canvas = profile_figure(profiles)
    assert [axis.get_xlabel() for axis in canvas.axes] == [
        "factor τ to the fewest steps",
        "factor τ to the fewest training seconds",
    ]
    assert {axis.get_ylabel() for axis in canvas.axes} == {"share of instances"}
    assert _titles(canvas) == ["steps, 3 instances", "training seconds, 3 instances"]
    assert _texts(canvas) == ["grouped_newton", "sgd lr=0.01", "sgd lr=0.1", "sgd lr=1"]
    for axis, profile in zip(canvas.axes, profiles, strict=True):
        assert axis.get_xscale() == "log"
        assert axis.get_xlim() == (1, profile.end)
        for line, solver in zip(axis.lines, profile.ratios, strict=True):
            assert line.get_drawstyle() == "steps-post"
            assert [profile.share(solver, x) for x in line.get_xdata()] == list(line.get_ydata())
    by_hand = {"grouped_newton": [1, 1, 1], "sgd lr=0.1": [1, 1.5, 1.5]}
    for solver, ratios in by_hand.items():
        assert profiles[0].ratios[solver].tolist() == pytest.approx(ratios)


# ---- the loss by step


def test_the_loss_by_step_of_every_run_and_its_median(tmp_path):
    losses = {0: [4.0, 2.0, 1.0], 1: [2.0, 1.0, 0.5], 2: [8.0, 4.0, 2.0]}
    for seed, values in losses.items():
        steps = [
            {"step": 50 * (k + 1), "loss": loss, "lr": 0.1, "train_seconds": k}
            for k, loss in enumerate(values)
        ]
        write_run(tmp_path, str(seed), {"seed": seed}, steps=steps, rows=[row(1, 150, 1.0)])
    comparison = compare([tmp_path])
    canvas = step_figure(comparison.setups, "mlp digits")
    (axis,) = canvas.axes
    assert [list(line.get_ydata()) for line in axis.lines] == [*losses.values(), [4.0, 2.0, 1.0]]
    assert {tuple(line.get_xdata()) for line in axis.lines} == {(50, 100, 150)}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("training steps", "training loss")
    assert "progress_steps" in {plot.stem for plot in comparison_plots(comparison)}
    write_run(
        tmp_path / "others", "old", {"model.name": "lenet"}, rows=[row(1, 150, 1.0)]
    )  # wrote no steps.csv
    assert step_figure(compare([tmp_path / "others"]).setups) is None


# ---- files


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return write_plots(sweep, tmp_path_factory.mktemp("written"))


def test_every_plot_is_an_image_in_both_formats(written):
    paths = written
    stems = ["progress_epochs", "progress_seconds", "rates_grouped_newton", "sensitivity", "profile"]
    assert [path.name for path in paths] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    for path in paths[::2]:
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert 0.01 < (pixels.min(axis=2) < 0.99).mean() < 0.5  # there is ink, and paper
    for path in paths[1::2]:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 20


def test_the_same_runs_give_the_same_files(written, sweep, tmp_path):
    before = {path.name: path for path in written}
    for plot in islice(comparison_plots(sweep), 2):
        for path in save(plot.figure, tmp_path / plot.stem):
            assert path.read_bytes() == before[path.name].read_bytes()


def test_each_problem_has_plots_of_its_own(no_images, tmp_path):
    for data in ("digits", "mnist"):
        compared(tmp_path / "runs", data=data)
    names = {path.name for path in write_plots(compare([tmp_path / "runs"]), tmp_path / "plots")}
    assert {"progress_epochs_mlp_digits.png", "progress_epochs_mlp_mnist.png"} <= names
    assert "rates_mlp_mnist_grouped_newton.svg" in names


def test_set_ups_with_alike_names_do_not_overwrite_each_other(no_images, tmp_path):
    for place, extra in enumerate(("<a>", "[a]")):
        rates = update(1, 0, {"a": 0.5})
        write_run(
            tmp_path / "runs", str(place), grouped_newton(extra=extra), rows=falling([1.0]), rates=rates
        )
    names = [path.name for path in write_plots(compare([tmp_path / "runs"]), tmp_path / "plots")]
    assert len([name for name in names if name.startswith("rates_")]) == 4
    assert len(set(names)) == len(names)


def test_a_folder_that_cannot_be_written_is_one_message(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_plots(sweep, tmp_path / "file")


def test_looks_differ_as_long_as_there_are_looks():
    styles = [(style["color"], str(style["linestyle"])) for style in looks(len(COLORS) * len(DASHES))]
    assert len(set(styles)) == len(styles)
    assert len(looks(100)) == 100


@pytest.mark.parametrize(
    ("text", "name"),
    [("sgd lr=0.1", "sgd_lr=0.1"), ("a/../b", "a_.._b"), ("ü", "plot"), ("x" * 200, "x" * 80)],
)
def test_slugs(text, name):
    assert slug(text) == name


def test_odd_names_do_not_become_mathematics(tmp_path):
    """A dollar sign or a broken formula in a name would make matplotlib fail or drop it."""
    for place, extra in enumerate((r"$\frac$", "a$b$c", "<b>&amp;")):
        write_run(
            tmp_path, str(place), {"optimizer.extra": extra, "model.name": r"$\x$"}, rows=falling([1.0, 0.5])
        )
    canvas = progress_figure(compare([tmp_path]).setups, "epoch", r"$\x$ digits")
    paths = save(canvas, tmp_path / "plot")
    assert all(path.stat().st_size > 1000 for path in paths)


def test_rows_that_never_change(tmp_path):
    write_run(
        tmp_path, "run", rows=[row(e, 10 * e, float(e), train_loss=0.5, train_accuracy=1.0) for e in (1, 2)]
    )
    canvas = progress_figure(compare([tmp_path]).setups, "train_seconds")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    assert len(buffer.getvalue()) > 1000
