"""Learning rates for a model of one's own: :func:`suggest_rates`, the Python form of ``gnewton rates``."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gnewton.arguments import check_name, check_number, check_whole, explained
from gnewton.inspection.suggestion import (
    FRESH,
    SOURCES,
    STEP,
    Observations,
    Suggestion,
    observe,
    suggest,
    suggestion_files,
)
from gnewton.interactive.user_parts import (
    LoaderBatches,
    OptimizerChoice,
    device_of,
    optimizer_direction,
    undisturbed,
)
from gnewton.partition import Partition, PartitionChoice, chosen_partition
from gnewton.partition.slices import require_whole
from gnewton.summary.api import EngineName
from gnewton.summary.problem import Forward, LossFunction, check_loss
from gnewton.wrappers import named_parameters, unwrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class SuggestedRates:
    """Suggested learning rates of a model: one for each group, and one for all parameters.

    Attributes:
        partition: the groups.
        suggestion: the rates with their spread over resampled batches.
    """

    partition: Partition
    suggestion: Suggestion
    _observations: Observations = field(compare=False)
    _parameters: dict[str, Tensor] = field(compare=False)

    @property
    def rate(self) -> float:
        """The rate of all parameters together, ``lr=`` of a torch optimizer."""
        return self.suggestion.single

    @property
    def rates(self) -> dict[str, float]:
        """The rate of each group by its name."""
        return dict(zip(self.partition.names, map(float, self.suggestion.rates), strict=True))

    def param_groups(self) -> list[dict[str, Any]]:
        """``params``, ``lr`` and ``name`` of each group: ``torch.optim.Adam(suggested.param_groups())``."""
        return [
            {"params": [self._parameters[name] for name in group.parameters], "lr": rate, "name": group.name}
            for group, rate in zip(self.partition, self.rates.values(), strict=True)
        ]

    def to_frame(self) -> pd.DataFrame:
        """The columns of suggestion.csv (docs/rates.md), a row for each group and one for ``(all)``."""
        import pandas as pd

        content = self._files()["suggestion.csv"]
        assert isinstance(content, bytes)
        return pd.read_csv(io.BytesIO(content), dtype={"group": str}).set_index("group")

    def plot(self) -> Figure:
        """The rate of each group with its 10 and 90 % quantiles, and the rate of all parameters."""
        from gnewton.report.plots.inspection_plots import suggestion_figure

        return suggestion_figure(self.to_frame())

    def save(self, folder: str | Path) -> list[Path]:
        """Write the files of ``gnewton rates`` and rates.png, rates.svg, and return their paths.

        Raises:
            InputError: if the folder cannot be written.
        """
        from gnewton.report.comparison import write_file
        from gnewton.report.plots.style import save

        folder = Path(folder)
        written = [write_file(folder / name, content) for name, content in self._files().items()]
        return [*written, *save(self.plot(), folder / "rates")]

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.to_frame().to_string(max_rows=60, float_format=lambda x: f'{x:.3g}')}"

    def _repr_html_(self) -> str:
        from gnewton.report.plots.style import fragment

        return fragment(self._title(), self.to_frame(), [self.plot()])

    def _title(self) -> str:
        return f"learning rates of {len(self.partition)} groups; {self.rate:.3g} for all parameters together"

    def _files(self) -> dict[str, str | bytes]:
        remarks = ["Learning rates by parameter, suggested by gnewton.suggest_rates"]
        return suggestion_files(self.partition, self.suggestion, self._observations, remarks)


@explained(
    loss_fn="pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy",
    loader="any iterable of batches (inputs, targets)",
    lr="the rate is what is looked for; it is suggested for steps at learning rate 1",
)
def suggest_rates(
    model: nn.Module,
    loss_fn: LossFunction,
    loader: Iterable[Any],
    *,
    optimizer: OptimizerChoice = "adam",
    partition: PartitionChoice = None,
    batches: int = 30,
    warmup: int = 50,
    along: str = STEP,
    step_size: float = 1.0,
    proximal: float = 10.0,
    internal_damping: float = 1.0,
    forward: Forward | None = None,
    engine: EngineName = "auto",
    max_memory: int | None = None,
    matrix: str = "hessian",
    seed: int = 0,
) -> SuggestedRates:
    """Learning rates for a first-order optimizer at the present weights, without any training.

    The method is that of ``gnewton rates`` (docs/rates.md). The model is the same afterwards: parameters,
    buffers, ``.grad``, training mode and random streams.

    Example::

        suggested = gnewton.suggest_rates(model, cross_entropy, loader, optimizer=torch.optim.Adam)
        optimizer = torch.optim.Adam(suggested.param_groups())

    Args:
        model, loss_fn, forward, engine, max_memory: as for :class:`~gnewton.summary.Summarizer`.
        loader: any iterable of training batches (inputs, targets), or of any batches with ``forward``; it is
            started again when it is exhausted. Batches are moved to the model's device.
        optimizer: "sgd" (momentum 0.9), "adam", "adamw", …; a class of torch.optim or a function that builds
            one; or an optimizer of this model, whose options and state are used and stay as they are.
        partition: the groups; one per parameter tensor by default.
        batches: number of batches whose summaries are averaged.
        warmup: number of gradients that the optimizer averages beforehand, at fixed weights.
        along: "step": summaries along the optimizer's step, on another batch of the loader; "fresh": along
            what the present gradient adds to the step, on the batch of that gradient.
        step_size: λ_1 > 0, the factor on all rates.
        proximal: μ >= 0, which keeps the rates of groups near the common one.
        internal_damping: λ_int >= 0, the weight of the cubic term.
        matrix: of the summaries, "hessian", "gauss_newton" or "fisher" (:func:`gnewton.summarize`).
        seed: of the resampling behind the spread.

    Raises:
        InputError: for an argument out of range, or where the optimizer's step lowers the loss at no rate.
    """
    model = unwrapped(model)
    check_loss(loss_fn)
    check_whole("batches", batches, 1)
    check_whole("warmup", warmup, 0)
    check_name("along", along, SOURCES)
    check_number("step_size", step_size, above=0)
    check_number("proximal", proximal, at_least=0)
    check_number("internal_damping", internal_damping, at_least=0)
    groups = chosen_partition(model, partition)
    require_whole(groups.sliced, "suggest_rates")
    endless = iter(LoaderBatches(loader, device_of(model), whole=forward is not None))
    with undisturbed(model, loss_fn, groups, forward):
        direction = optimizer_direction(model, optimizer)
        try:
            of_groups, whole = observe(
                model,
                loss_fn,
                [groups, Partition.single(model)],
                direction,
                endless,
                None if along == FRESH else endless,
                batches=batches,
                warmup=warmup,
                forward=forward,
                engine=engine,
                max_memory=max_memory,
                matrix=matrix,
            )
        finally:
            direction.close()
    suggestion = suggest(
        of_groups,
        whole,
        internal_damping=internal_damping,
        proximal=proximal,
        step_size=step_size,
        seed=seed,
    )
    return SuggestedRates(groups, suggestion, of_groups, dict(named_parameters(model)))
