"""The study: its plan, the choice of settings and the table of results, on made-up runs."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from gnewton.cli.composer import Composer
from gnewton.errors import InputError
from gnewton.experiment.overrides import parse_overrides
from gnewton.report.runs import Run
from gnewton.runfiles import DIVERGED, DONE
from scripts.study.plan import Method, Plan, Trial
from scripts.study.report import write_report
from scripts.study.results import choose, geometric_mean, ratios, share_to, table
from scripts.study.stages import Outcome

PLAN = Plan(
    tasks={"digits": ("data=digits",)},
    methods=(Method("ours", ("optimizer=grouped_newton",)), Method("adam", ("optimizer=adam",), (0.1, 0.01))),
    reference="adam",
    common=(),
    search_seed=0,
    seeds=(1, 2, 3),
)


def outcome(trial: Trial, losses: list[float], status: str = DONE) -> Outcome:
    """A run whose training loss takes these values at steps 10, 20, …, and ends at the last."""
    steps = [10 * (i + 1) for i in range(len(losses))]
    metrics = pd.DataFrame(
        {
            "epoch": [1],
            "step": steps[-1:],
            "train_loss": losses[-1:],
            "test_accuracy": [0.5],
            "train_seconds": [1.0],
        }
    )
    log = pd.DataFrame({"step": steps, "loss": losses, "lr": 1.0, "train_seconds": 0.0})
    return Outcome(trial, status, Run(Path(), {}, {}, {"status": status}, metrics, None, log))


def trial(method: str, setting: str = "", seed: int = 0) -> Trial:
    """A trial on the digits."""
    return Trial("digits", method, setting, seed, ())


def test_a_method_has_every_rate_with_every_schedule() -> None:
    method = Method("sgd", ("optimizer=sgd",), (0.1, 1.0), ("constant", "linear"))
    assert list(method.settings()) == ["lr=0.1 constant", "lr=0.1 linear", "lr=1 constant", "lr=1 linear"]
    assert method.settings()["lr=1 linear"] == (
        "optimizer=sgd",
        "optimizer.lr=1.0",
        "optimizer/schedule=linear",
    )
    assert method.tuned
    assert not Method("ours", ("optimizer=grouped_newton",)).tuned


def test_untuned_methods_are_not_searched_and_every_method_runs_on_the_fresh_seeds() -> None:
    assert [(t.method, t.seed) for t in PLAN.search()] == [("adam", 0), ("adam", 0)]
    final = PLAN.final({("digits", "adam"): "lr=0.01"})
    assert [(t.method, t.setting, t.seed) for t in final] == [
        *(("ours", "", seed) for seed in (1, 2, 3)),
        *(("adam", "lr=0.01", seed) for seed in (1, 2, 3)),
    ]
    assert "optimizer.lr=0.01" in final[-1].overrides
    assert "seed=3" in final[-1].overrides


@pytest.mark.parametrize("name", ["quick", "full"])
def test_every_trial_of_the_plans_is_a_valid_configuration(name: str) -> None:
    plan, composer = Plan.read(name), Composer()
    assert plan.reference in {method.name for method in plan.methods}
    first = {(t.task, t.method): t for t in [*plan.final({}), *plan.search()]}
    composed = composer.check([parse_overrides(t.overrides) for t in first.values()])
    assert len(composed) == len(plan.tasks) * len(plan.methods)


def test_the_setting_of_least_final_loss_is_chosen_and_a_diverged_run_never_is() -> None:
    searched = [
        outcome(trial("adam", "lr=0.1"), [3.0, 0.1], DIVERGED),
        outcome(trial("adam", "lr=0.01"), [3.0, 0.5]),
        outcome(trial("adam", "lr=0.001"), [3.0, 2.0]),
    ]
    assert choose(searched) == {("digits", "adam"): "lr=0.01"}


def test_the_share_to_a_target_is_where_the_trailing_loss_first_reaches_it() -> None:
    run = outcome(trial("ours"), [4.0, 3.0, 2.0, 1.0])
    assert share_to(run, 2.0, 40) == 0.75
    assert share_to(run, 0.5, 40) == math.inf


def test_the_table_has_medians_spread_lost_runs_and_ratios(tmp_path: Path) -> None:
    finals = [
        outcome(trial("adam", "lr=0.01", seed), [4.0, 2.0, end]) for seed, end in enumerate((0.8, 1.0, 1.2))
    ]
    finals += [outcome(trial("ours", "", seed), [4.0, 1.0, 0.5]) for seed in range(2)]
    finals += [outcome(trial("ours", "", 2), [4.0, 1.0, 9.0], DIVERGED)]
    results = table(PLAN, {("digits", "adam"): "lr=0.01"}, finals)
    ours, adam = (results[results.method == name].iloc[0] for name in ("ours", "adam"))
    assert (adam.train_loss, adam.least, adam.greatest, adam.lost) == (1.0, 0.8, 1.2, 0)
    assert (ours.train_loss, ours.greatest, ours.lost, ours.ratio) == (0.5, math.inf, 1, 0.5)
    assert ours.share_to_reference == pytest.approx(2 / 3)
    assert ratios(results, "adam", "ours")["digits"] == 0.5
    write_report(tmp_path, PLAN, [], finals, results)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "README.md",
        "all_runs.csv",
        "results.csv",
        "profile.png",
    }
    assert len(pd.read_csv(tmp_path / "all_runs.csv")) == len(finals)


def test_a_geometric_mean_with_a_lost_run_is_infinite() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([0.5, math.inf]) == math.inf
    assert geometric_mean([0.5, 0.0, math.nan]) == 0.0  # of a reference that was lost, or lost as well
    assert math.isnan(geometric_mean([]))


def test_a_part_of_the_plan_keeps_the_reference_and_refuses_unknown_names() -> None:
    plan = Plan.read("quick")
    part = plan.only(["digits"], ["grouped_newton, pair"])
    assert list(part.tasks) == ["digits"]
    assert [method.name for method in part.methods] == ["grouped_newton, pair", plan.reference]
    for tasks, methods, message in (
        (["digit"], [], "--only digit: must be one of "),
        ([], ["adam,kfac"], "--methods adam,kfac: must be one of "),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            plan.only(tasks, methods)
