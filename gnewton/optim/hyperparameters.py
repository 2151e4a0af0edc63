"""The hyperparameters of the optimizers of this package and of their parts: type, default, range and meaning.

Constructors check their arguments against these fields, and the recipes of :mod:`gnewton.optim.options`
derive from them, so that Python and the command line allow the same values. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from gnewton.options import option, option_of

SOLVERS = ("cubic", "cubic_diagonal", "ridge", "newton")
FISHERS = ("true", "empirical", "auto")
MATRICES = ("hessian", "gauss_newton", "fisher")


@dataclass(kw_only=True)
class GroupedNewtonHyperparameters:
    """The hyperparameters of :class:`~gnewton.optim.grouped_newton.GroupedNewton`."""

    along: str = option(
        "fresh",
        help="summaries along fresh: what the present gradient adds to the direction; step: the "
        "direction itself",
        choices=("fresh", "step"),
    )
    period: int = option(10, help="training steps between two updates of the rates", at_least=1)
    warmup: int = option(
        0,
        help="leading steps that only feed the average of the summary; no parameter moves in them",
        at_least=0,
    )
    step_size: float = option(
        1.0, help="λ_1, the factor on all rates; the schedule acts on it", above=0, formerly="damping"
    )
    solver: str = option(
        "cubic",
        help="cubic; cubic_diagonal: the diagonal of H̄ alone; ridge: in place of the cubic term; "
        "newton: bare",
        choices=SOLVERS,
    )
    internal_damping: float = option(
        1.0, help="λ_int, the weight of the cubic term, or of the ridge; 0: none", at_least=0
    )
    negative_rates: str = option(
        "clip",
        help="keep: signed rates; clip: set to 0 after the solve; constrain: solve over rates >= 0",
        choices=("keep", "clip", "constrain"),
    )
    cap: float | None = option(
        0.1,
        help="a step of a group is at most this fraction of the length of its parameters; null: no bound",
        above=0,
    )
    safeguard: bool = option(
        True, help="an update whose loss has left its band is undone; takes a copy of the parameters"
    )
    shrinkage: float = option(
        1.0,
        help="weight of the pull towards one rate for all groups, within 8 × of which rates stay; 0: off",
        at_least=0,
    )
    proximal: float = option(
        1.0, help="weight of the term that keeps rates near the previous ones; 0: off", at_least=0
    )
    normalise: bool = option(
        True, help="average summaries in units of ‖P_s u‖, so that old ones stay comparable"
    )


@dataclass(kw_only=True)
class PreconditionerHyperparameters:
    """The hyperparameters of K-FAC that its optimizer and its direction share."""

    momentum: float = option(0.9, help="factor on the previous step; 0: none", at_least=0, below=1)
    weight_decay: float = option(
        0.0, help="share of the parameters that a step of lr 1 would take away (decoupled)", at_least=0
    )
    damping: float = option(0.03, help="λ, added to the curvature", above=0)
    kl_clip: float | None = option(
        0.01,
        help="κ, bound on the squared length of a step in the metric of the curvature; null: none",
        above=0,
    )
    decay: float = option(0.95, help="factor on the old averages of the factors", at_least=0, below=1)
    statistics_period: int = option(10, help="T_cov, steps between two updates of the factors", at_least=1)
    inverse_period: int = option(100, help="T_inv, steps between two updates of their inverses", at_least=1)
    early_inverses: bool = option(
        False,
        help="more updates of the inverses at the start: at T_cov, 2 T_cov, 4 T_cov … until they are T_inv "
        "apart",
        before=False,
    )
    fisher: str = option(
        "true",
        help="true: labels drawn from the predictions; empirical: the gradients of the loss; auto: true "
        "where network and loss allow it, else empirical",
        choices=FISHERS,
    )
    preconditioner: str = option(
        "inverse",
        help="inverse: damping split over the factors; low_rank: the same with the leading eigenvectors; "
        "eigen: added to products of eigenvalues; ekfac",
        choices=("inverse", "low_rank", "eigen", "ekfac"),
    )
    start: str = option(
        "first",
        help="the averages start from the first statistics (first) or from the identity",
        choices=("first", "identity"),
    )
    scaling: str = option(
        "standard",
        help="standard; reference: A divided and G multiplied by the squared number of positions",
        choices=("standard", "reference"),
    )


@dataclass(kw_only=True)
class KFACDirectionHyperparameters:
    """Of K-FAC as a direction: what it has beside those of K-FAC itself, or with another default."""

    early_inverses: bool = option_of(PreconditionerHyperparameters, "early_inverses", True)
    fisher: str = option_of(PreconditionerHyperparameters, "fisher", "auto")
    preconditioner: str = option_of(PreconditionerHyperparameters, "preconditioner", "low_rank")

    largest_factor: int = option(
        8192, help="most rows of a factor; layers with a larger one are left to Adam", at_least=1
    )
    adam_scale: float = option(
        0.03, help="length of Adam's step beside K-FAC's, as the learning rate of Adam", above=0
    )


@dataclass(kw_only=True)
class KFACHyperparameters(PreconditionerHyperparameters):
    """The hyperparameters of :class:`~gnewton.optim.kfac.optimizer.KFAC`."""

    lr: float = option(0.003, help="learning rate", above=0)


@dataclass(kw_only=True)
class ExponentialHyperparameters:
    """The hyperparameters of :class:`~gnewton.optim.averaging.ExponentialAveraging`."""

    coefficient: float = option(0.8, help="weight of an update relative to the next one", at_least=0, below=1)


@dataclass(kw_only=True)
class UniformHyperparameters:
    """The hyperparameters of :class:`~gnewton.optim.averaging.UniformAveraging`."""

    period: int = option(
        3, help="updates between swaps; the mean in use covers between one and two periods", at_least=1
    )


@dataclass(kw_only=True)
class StaticHyperparameters:
    """The hyperparameters of :class:`~gnewton.optim.averaging.StaticAveraging`."""

    batches: int = option(4, help="summaries per update, each on a curvature batch of its own", at_least=1)


@dataclass(kw_only=True)
class ProgressHyperparameters:
    """The hyperparameters of :class:`~gnewton.optim.controllers.Progress`."""

    rise: float = option(1.2, help="factor on λ_1 at an update while the loss falls", above=1)
    fall: float = option(
        0.85, help="factor on λ_1 at an update when the loss has stopped falling", above=0, below=1
    )
    highest: float = option(
        4.0, help="λ_1 beyond which it does not rise, in units of the minimiser of a batch", above=0
    )
    lowest: float = option(0.3, help="λ_1 below which it does not fall", above=0)
    window: int = option(
        6, help="updates over which the trend of the loss is taken; later a third of all so far", at_least=4
    )
    exponent: float = option(
        0.5,
        help="λ_1 rises beyond 1 while the loss falls at least as the number of updates to minus this power",
        at_least=0,
        before=0.0,
    )
    first_rises: int | None = option(
        None,
        help="updates at the start at which λ_1 rises in any case; null: 3, along K-FAC's direction 0",
        at_least=0,
        at_most=3,
        before=3,
    )
