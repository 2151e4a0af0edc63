"""What a training step of each optimizer costs, in steps of SGD (docs/performance.md).

    python scripts/bench/step.py [--only mlp,lenet] [--optimizers kfac] [--repeats 5] [--threads 1]
    python scripts/bench/step.py --optimizers "grouped_newton optimizer/direction=pair"

Every optimizer is the one that ``optimizer=NAME`` chooses, on its own copy of the network; those that take
the whole training set per step are left out. They take turns in one process, a few steps each. Steps of one
kind (with new rates, with new factors, …) are timed apart; of each kind the least time is kept, which is what
a quiet machine would show, and the median. The mean over a period is made of them by their frequency. What
happens once, such as the trace of the model and the first steps, is not counted.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from summary import CASES, CLOCKS, Case, clock, write_table
from torch import Tensor, nn

from gnewton.cli.choices import config_groups
from gnewton.experiment.places import config_folder
from gnewton.experiment.prepare import settings_from
from gnewton.experiment.schema import register_schemas
from gnewton.optim.options import OptimizerRecipe, TrainingProblem
from gnewton.optim.options.second_order import GroupedNewtonRecipe, KFACDirection, KFACRecipe
from gnewton.partition import Partition

Batch = tuple[Tensor, Tensor]
Clock = Callable[[Callable[[], object]], float]
PLAIN = "plain"
BATCHES = 4
SIZES = {("mlp", 100), ("lenet", 100), ("bigmlp", 100), ("vgg11", 100)}
NETWORKS = [case for case in CASES if (case.name, case.batch) in SIZES]
HEADER = (
    "network   batch  optimizer                   ms/step  × SGD  (median)  summary  solver"
    "  plain/update/factors/inverses ms"
)


def kinds(recipe: OptimizerRecipe) -> dict[str, int]:
    """The kinds of steps beside plain ones, each with its period; the first of those that are due counts."""
    if isinstance(recipe, GroupedNewtonRecipe):
        rare = recipe.direction.inverse_period if isinstance(recipe.direction, KFACDirection) else 0
        whole = rare and rare % recipe.period == 0
        return {"inverses": rare, "update": recipe.period} if whole else {"update": recipe.period}
    if isinstance(recipe, KFACRecipe):
        return {"inverses": recipe.inverse_period, "factors": recipe.statistics_period}
    return {}


def shortened(recipe: OptimizerRecipe) -> OptimizerRecipe:
    """The recipe with a rare kind of step made less rare, so that it need not be waited for."""
    if isinstance(recipe, KFACRecipe):
        return replace(recipe, inverse_period=2 * recipe.statistics_period)
    if isinstance(recipe, GroupedNewtonRecipe) and isinstance(recipe.direction, KFACDirection):
        return replace(recipe, direction=replace(recipe.direction, inverse_period=2 * recipe.period))
    return recipe


@dataclass
class Side:
    """One optimizer on its copy of the network.

    Attributes:
        clock: seconds that a call takes.
        times: seconds of the timed steps by kind; of summary and solver by these names.
    """

    name: str
    recipe: OptimizerRecipe
    model: nn.Module
    batches: Sequence[Batch]
    clock: Clock
    times: dict[str, list[float]] = field(default_factory=dict)
    updates: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.frequency = frequencies(kinds(self.recipe))
        recipe = shortened(self.recipe)
        self.periods = kinds(recipe)  # those that are measured
        problem = TrainingProblem(
            model=self.model,
            loss_fn=F.cross_entropy,
            partition=Partition.per_tensor(self.model) if recipe.uses_partition else None,
            curvature=self._curvature,
            on_update=self.updates.append,
            likelihood="categorical",
            seed=0,
        )
        self.optimizer = recipe.build(problem)
        self.cycle = max(self.periods.values(), default=5)
        for step in range(getattr(recipe, "warmup", 0) + self.cycle):
            self._step(step)

    def run(self) -> None:
        """One cycle of timed steps."""
        for step in range(self.cycle):
            kind = next((name for name, period in self.periods.items() if step % period == 0), PLAIN)
            self.updates.clear()
            self.times.setdefault(kind, []).append(self.clock(partial(self._step, step)))
            for update in self.updates:
                self.times.setdefault("summary", []).append(update.summary_seconds)
                self.times.setdefault("solver", []).append(update.solve_seconds)

    def mean(self, of: Callable[[list[float]], float]) -> float:
        """Seconds of a step on average over the periods."""
        return sum(share * of(self.times[kind]) for kind, share in self.frequency.items() if share)

    def share(self, part: str) -> float | None:
        """What part of the time summary or solver take; None where there is none."""
        if part not in self.times:
            return None
        return self.frequency["update"] * min(self.times[part]) / self.mean(min)

    def _step(self, step: int) -> None:
        inputs, targets = self.batches[step % len(self.batches)]

        def evaluate() -> Tensor:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), targets)
            loss.backward()
            return loss.detach()

        self.recipe.step(self.optimizer, evaluate, (inputs, targets))

    def _curvature(self, size: int | None) -> Iterator[Batch]:
        inputs, targets = (torch.cat([batch[i] for batch in self.batches]) for i in (0, 1))
        order = torch.arange(size or len(self.batches[0][0]), device=inputs.device) % len(inputs)
        batch = inputs[order], targets[order]
        while True:
            yield batch


def frequencies(periods: dict[str, int]) -> dict[str, float]:
    """The share of the steps of each kind; every period divides those named before it."""
    shares: dict[str, float] = {}
    for name, period in periods.items():
        shares[name] = 1 / period - sum(shares.values())
    return {**shares, PLAIN: 1 - sum(shares.values())}


def recipes(wanted: list[str], *, compiled: bool) -> dict[str, OptimizerRecipe]:
    """The chosen optimizers, SGD before all others, with the options that their files give them.

    Args:
        wanted: names, each followed by the overrides that it has, if any, after spaces; empty: all names.
        compiled: whether to add each GroupedNewton once more, with compiled summaries.
    """
    register_schemas()
    names = [choice.name for choice in config_groups()["optimizer"]]
    unknown = {entry.split()[0] for entry in wanted} - set(names)
    if unknown:
        raise SystemExit(f"--optimizers={','.join(sorted(unknown))}: must be some of {', '.join(names)}")
    by_name = {}
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        others = sorted(wanted or names, key=lambda entry: names.index(entry.split()[0]))
        for name in ["sgd", *(entry for entry in others if entry != "sgd")]:
            overrides = f"optimizer={name}".split()
            recipe = settings_from(compose("config", overrides=overrides)).optimizer
            if wanted or not recipe.full_batch:
                by_name[name] = recipe
                if compiled and isinstance(recipe, GroupedNewtonRecipe):
                    engine = replace(recipe.curvature, engine="compiled")
                    by_name[f"{name}, compiled"] = replace(recipe, curvature=engine)
    return by_name


def measure(
    case: Case, chosen: dict[str, OptimizerRecipe], device: torch.device, repeats: int, cpu_time: bool
) -> Iterator[dict[str, object]]:
    """One row of the table per optimizer."""
    torch.manual_seed(0)
    network = case.build().to(device)
    batches = [
        (
            torch.randn(case.batch, *case.shape, device=device),
            torch.randint(0, 10, (case.batch,), device=device),
        )
        for _ in range(BATCHES)
    ]
    timer: Clock = partial(clock, device=device, now=CLOCKS["cpu" if cpu_time else "wall"])
    sides = [Side(name, recipe, copy.deepcopy(network), batches, timer) for name, recipe in chosen.items()]
    for _ in range(repeats):
        for side in sides:
            side.run()
    sgd = sides[0]
    for side in sides:
        row: dict[str, object] = {
            "network": case.name,
            "batch": case.batch,
            "optimizer": side.name,
            "step_ms": side.mean(min) * 1e3,
            "step_median_ms": side.mean(statistics.median) * 1e3,
            "times_sgd": side.mean(min) / sgd.mean(min),
            "times_sgd_median": side.mean(statistics.median) / sgd.mean(statistics.median),
            "summary_share": None if cpu_time else side.share("summary"),  # they are timed by the wall clock
            "solver_share": None if cpu_time else side.share("solver"),
        }
        row |= {
            f"{kind}_ms": min(side.times[kind]) * 1e3 if kind in side.times else None
            for kind in (PLAIN, "update", "factors", "inverses")
        }
        yield row | {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks, comma-separated")
    parser.add_argument(
        "--optimizers",
        default="",
        help="choices of optimizer=, comma-separated, each with overrides after spaces; SGD is always there",
    )
    parser.add_argument("--compiled", action="store_true", help="GroupedNewton with compiled summaries too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="processor time: on a shared machine")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/step.csv"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = set(filter(None, options.only.split(",")))
    unknown = wanted - {case.name for case in NETWORKS}
    if unknown:
        raise SystemExit(f"--only={','.join(sorted(unknown))}: must be some of {_names()}")
    device = torch.device(options.device)
    if options.cpu_time and (device.type != "cpu" or torch.get_num_threads() > 1):
        raise SystemExit("--cpu-time: needs --device cpu --threads 1")
    chosen = recipes(list(filter(None, options.optimizers.split(","))), compiled=options.compiled)
    rows = []
    print(HEADER)
    for case in NETWORKS:
        if wanted and case.name not in wanted:
            continue
        for row in measure(case, chosen, device, options.repeats, options.cpu_time):
            rows.append(row)
            parts = "/".join(
                _show(row[f"{k}_ms"], ".1f") or "–" for k in (PLAIN, "update", "factors", "inverses")
            )
            print(
                f"{row['network']:<9} {row['batch']:>5}  {row['optimizer']:<26} {row['step_ms']:>8.2f}"
                f" {row['times_sgd']:>6.2f} {row['times_sgd_median']:>9.2f}"
                f"  {_show(row['summary_share'], '.0%'):>7} {_show(row['solver_share'], '.1%'):>7}  {parts}",
                flush=True,
            )
    write_table(options.out, rows)


def _names() -> str:
    return ", ".join(case.name for case in NETWORKS)


def _show(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, float) else ""


if __name__ == "__main__":
    main()
