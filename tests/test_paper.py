"""The figures of the paper, each at toy size on the embedded digits, from runs that they share."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from gnewton.cli.composer import Composer
from gnewton.experiment.overrides import parse_overrides
from scripts.paper.__main__ import FIGURES
from scripts.paper.record import MADE_WITH
from scripts.paper.runs import InProcessWorkshop
from scripts.paper.settings import PAPER, PaperSettings
from scripts.paper.units import rescale
from scripts.study.plan import Trial

NETWORK = ["model=mlp", "model.widths=[8]", "data=digits"]
TOY = {
    "common": [
        "trainer.epochs=1",
        "trainer.max_steps=8",
        "trainer.log_every=1",
        "trainer.dtype=float64",
        "optimizer.period=2",
    ],
    "curves": {
        "tasks": {"digits": NETWORK},
        "reference": PAPER,
        "search_seed": 0,
        "seeds": [1],
        "methods": {PAPER: {"overrides": [f"optimizer={PAPER}"]}},
    },
    "matrices": {"setups": {"digits": {"overrides": NETWORK, "samples": 200, "steps": [None]}}},
    "ablations": {"task": NETWORK, "seeds": [1], "variants": {"one group": ["partition=single"]}},
    "rescaling": {
        "task": ["model=rescaled_mlp", "imports=[scripts.paper.rescaled_networks]", *NETWORK[1:]],
        "methods": {PAPER: [f"optimizer={PAPER}"]},
    },
    "costs": {
        "networks": {"digits": ["model=mlp", "model.widths=[8]", "data=digits"]},
        "repeats": 1,
        "reference_most": 2,
    },
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each figure."""
    root = tmp_path_factory.mktemp("paper")
    settings, workshop = PaperSettings.parse(TOY), InProcessWorkshop(root / "runs")
    for name, figure in FIGURES.items():
        figure(settings, workshop).write(
            root / name, ["python", "-m", "scripts.paper", name], torch.device("cpu")
        )
    return {name: root / name for name in FIGURES}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_table_an_image_and_the_line_that_makes_it(
    name: str, written: dict[str, Path]
) -> None:
    files = {path.suffix for path in written[name].iterdir()}
    assert files == {".csv", ".png", ".json"}
    record = json.loads((written[name] / MADE_WITH).read_text())
    assert record["command"] == f"python -m scripts.paper {name}"
    assert str(Path.cwd()) not in json.dumps(record)


def test_matrices_are_symmetric_and_belong_to_the_start_and_to_the_end(written: dict[str, Path]) -> None:
    matrix = pd.read_csv(written["matrices"] / "matrix.csv")
    assert list(matrix["step"].unique()) == [0, 8]
    for _, at in matrix.groupby("step"):
        square = at.pivot(index="row", columns="column", values="hessian")
        assert square.shape == (4, 4)
        assert (square - square.T).abs().max().max() <= 1e-5 * square.abs().max().max()
    groups = pd.read_csv(written["matrices"] / "groups.csv")
    assert groups.groupby("step")["loss"].first().is_monotonic_decreasing
    assert set(pd.read_csv(written["matrices"] / "rates.csv")["group"]) == set(groups["group"])


def test_a_run_that_several_figures_need_is_made_once(written: dict[str, Path]) -> None:
    lines = {
        name: pd.read_csv(written[name] / "runs.csv").set_index("method")["train_loss"]
        for name in ("curves", "ablations", "matrices")
    }
    assert lines["curves"][PAPER] == lines["ablations"][PAPER] == lines["matrices"][PAPER]
    runs = list((written["curves"].parent / "runs").rglob("metrics.csv"))
    assert len(runs) == 2 + 6  # the author's settings and one group; the rescaling has a network of its own


def test_trajectories_of_rescaled_groups_coincide(written: dict[str, Path]) -> None:
    ends = pd.read_csv(written["rescaling"] / "ends.csv").set_index(["form", "dtype"])
    assert (ends["steps"] == 8).all()
    powers = ends.loc[("powers", "float64")]
    assert powers["at_start"] == 0
    assert powers["largest"] < 1e-12
    assert powers["weights"] < 1e-11
    assert ends.loc[("ntk", "float64"), "weights"] < 1e-6  # they start from weights rounded to float32
    assert ends.loc[("powers", "float32"), "weights"] < 1e-3


def test_the_units_of_the_rescaled_network_differ_and_its_function_does_not() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    rescaled = rescale(copy.deepcopy(plain), 5)
    x = torch.randn(7, 4)
    assert torch.equal(plain(x), rescaled(x))
    stored = dict(rescaled.named_parameters())
    assert stored["0.parametrizations.weight.original"].flatten()[0] == 32 * plain[0].weight.flatten()[0]
    sizes = [
        float((stored[f"{i}.parametrizations.weight.original"].std() / plain[i].weight.std()).detach())
        for i in (0, 2)
    ]
    assert sizes[0] != pytest.approx(sizes[1])


def test_costs_are_in_gradients_and_the_reference_ends_at_its_bound(written: dict[str, Path]) -> None:
    costs = pd.read_csv(written["costs"] / "costs.csv")
    assert costs["groups"].is_monotonic_increasing
    assert (costs["tangent"] > 0).all()
    assert (costs["reference"].notna() == (costs["groups"] <= 2)).all()


def test_the_runs_of_both_forms_are_valid_configurations() -> None:
    first: dict[str, Trial] = {}  # each variant once: composing takes its time
    for form in ("quick", "full"):
        settings = PaperSettings.read(form)
        changed = {**settings.matrices, f"{form} rescaling": settings.rescaling_task}
        for name, overrides in settings.rescaling.items():
            changed[name] = (*settings.rescaling_task, *overrides)
        for name, overrides in settings.ablations.items():
            changed[name] = (*settings.ablation_task, f"optimizer={PAPER}", *overrides)
        trials = [settings.trial("", name, "", 0, overrides) for name, overrides in changed.items()]
        for trial in [*trials, *settings.curves.final({})]:
            first.setdefault(f"{trial.task} {trial.method}", trial)
    Composer().check([parse_overrides(trial.overrides) for trial in first.values()])
