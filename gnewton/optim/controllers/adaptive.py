"""λ_int by adaptive regularisation with cubics (Cartis, Gould, Toint 2011), adapted to noise."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch

from gnewton.arguments import check_options
from gnewton.errors import InputError
from gnewton.optim.controllers.controller import INTERNAL_DAMPING, Controller, Site
from gnewton.optim.hyperparameters import AdaptiveHyperparameters
from gnewton.optim.rate_rule import Proposal


class Verdict(Enum):
    """The verdict on a trial step."""

    REJECTED = "rejected"
    ACCEPTED = "accepted"
    SUCCESSFUL = "successful"


class Adaptive(Controller):
    """Compares the decrease of the objective on the curvature batch with the prediction of the model.

    On n slices of the batch the step changes the objective by δ_i; δ is their mean and e their standard error
    (0 for a single slice). The step is *rejected* where δ < ``accept`` · predicted − z e, and *very
    successful* where δ − z e >= ``succeed`` · predicted > 0. After a rejection the rates are solved again
    with λ_int multiplied by ``increase``, at most ``trials`` times. Then the last rates are used: a model
    averaged over updates may point uphill on one batch, and no damping repairs that.

    These trials affect only the current update. λ_int itself is multiplied (divided) by ``increase`` if more
    than half of the first trials of the last ``window`` updates were rejected (very successful). At every
    update it also returns towards its base by the power 1 − ``pull``, so that it cannot run away.

    Args:
        accept, succeed: 0 <= accept < succeed <= 1.
        errors: z >= 0, the number of standard errors that count as noise.
        increase: > 1.
        trials: number of further solves per update, >= 0.
        window: number of updates over which λ_int is judged, >= 1.
        pull: in [0, 1].
        slices: n >= 1; a batch with fewer samples has one slice per sample.
    """

    def __init__(
        self,
        *,
        accept: float = 0.1,
        succeed: float = 0.75,
        errors: float = 1.0,
        increase: float = 2.0,
        trials: int = 2,
        window: int = 5,
        pull: float = 0.05,
        slices: int = 10,
    ) -> None:
        super().__init__()
        check_options(
            AdaptiveHyperparameters,
            accept=accept,
            succeed=succeed,
            errors=errors,
            increase=increase,
            trials=trials,
            window=window,
            pull=pull,
            slices=slices,
        )
        if accept >= succeed:
            raise InputError(f"accept={accept}, succeed={succeed}: must be 0 <= accept < succeed <= 1")
        self._accept, self._succeed, self._errors = accept, succeed, errors
        self._increase, self._trials = increase, trials
        self._window, self._pull, self._slices = window, pull, slices
        self._recent: list[str] = []
        self._counts = {Verdict.ACCEPTED: 0, Verdict.REJECTED: 0}
        self._decrease = self._predicted = math.nan

    @property
    def quantity(self) -> str | None:
        """λ_int moves."""
        return INTERNAL_DAMPING

    def settle(self, site: Site) -> Proposal:
        """Solve and try the step, repeat while it is rejected, and adapt λ_int to the first verdict."""
        factor = self.internal_damping
        proposal = site.propose(1.0, factor)
        first = verdict = self._try(site, proposal, factor)
        for _ in range(self._trials):
            if verdict is not Verdict.REJECTED:
                break
            factor *= self._increase
            proposal = site.propose(1.0, factor)
            verdict = self._try(site, proposal, factor)
        self._learn(first)
        return proposal

    def _try(self, site: Site, proposal: Proposal, factor: float) -> Verdict | None:
        """The verdict on one step; None if the rates are 0."""
        predicted = site.predicted(proposal, 1.0, factor)
        if predicted == 0:
            return None
        decreases = site.decreases(proposal, 1.0, self._slices)
        count = len(decreases)
        mean = float(decreases.mean())
        error = float(decreases.std()) / math.sqrt(count) if count > 1 else 0.0
        self._decrease, self._predicted = mean, predicted
        verdict = Verdict.ACCEPTED
        if (
            not bool(torch.isfinite(decreases).all())
            or mean < self._accept * predicted - self._errors * error
        ):
            verdict = Verdict.REJECTED
        elif predicted > 0 and mean - self._errors * error >= self._succeed * predicted:
            verdict = Verdict.SUCCESSFUL
        self._counts[Verdict.REJECTED if verdict is Verdict.REJECTED else Verdict.ACCEPTED] += 1
        return verdict

    def _learn(self, first: Verdict | None) -> None:
        self.internal_damping **= 1 - self._pull
        if first is None:
            return
        self._recent = [*self._recent, first.value][-self._window :]
        if len(self._recent) < self._window:
            return
        for verdict, factor in (
            (Verdict.REJECTED, self._increase),
            (Verdict.SUCCESSFUL, 1 / self._increase),
        ):
            if self._recent.count(verdict.value) > self._window / 2:
                self.internal_damping *= factor
                self._recent = []

    def readings(self) -> dict[str, float]:
        """Numbers of accepted and rejected trials so far, and the decreases of the last one."""
        return {
            "trials_accepted": self._counts[Verdict.ACCEPTED],
            "trials_rejected": self._counts[Verdict.REJECTED],
            "decrease": self._decrease,
            "predicted": self._predicted,
        }

    def state_dict(self) -> dict[str, Any]:
        """The factors, the verdicts since λ_int last moved, and the readings."""
        return {**super().state_dict(), "recent": list(self._recent), "readings": self.readings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._recent, readings = list(state["recent"]), state["readings"]
        self._counts = {
            Verdict.ACCEPTED: readings["trials_accepted"],
            Verdict.REJECTED: readings["trials_rejected"],
        }
        self._decrease, self._predicted = readings["decrease"], readings["predicted"]
