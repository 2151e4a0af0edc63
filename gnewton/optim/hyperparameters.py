"""The hyperparameters of the optimizers of this package and of their parts: type, default, range and meaning.

Constructors check their arguments against these fields, and the recipes of :mod:`gnewton.optim.options`
derive from them, so that Python and the command line allow the same values. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from gnewton.options import option, option_of

SOLVERS = ("cubic", "cubic_diagonal", "ridge", "newton")
MATRICES = ("hessian", "gauss_newton", "fisher")


@dataclass(kw_only=True)
class GroupedNewtonHyperparameters:
    """Of GroupedNewton."""

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
    rate_momentum: float = option(
        0.0, help="μ of η ← μ η_old + (1 − μ) η, on the unclipped rates; 0: off", at_least=0, below=1
    )
    rate_median: int | None = option(
        None, help="a rate is bounded by its median over so many updates; null: no bound", at_least=2
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
class OuterNewtonHyperparameters:
    """Of OuterNewton."""

    lr: float = option(
        0.01,
        help="learning rate of the inner optimizer, which direction chooses; the schedule acts on it",
        above=0,
    )
    period: int = option_of(
        GroupedNewtonHyperparameters, "period", 20, help="inner steps between two outer ones"
    )
    step_size: float = option_of(
        GroupedNewtonHyperparameters, "step_size", help="λ_1, the factor on all rates"
    )
    lowest: float = option(
        -1.0, help="bound on the rates from below; -1 takes a displacement back as a whole"
    )
    highest: float = option(5.0, help="bound on the rates from above")
    solver: str = option_of(GroupedNewtonHyperparameters, "solver")
    internal_damping: float = option_of(GroupedNewtonHyperparameters, "internal_damping")
    proximal: float = option_of(GroupedNewtonHyperparameters, "proximal", 0.0)
    normalise: bool = option_of(
        GroupedNewtonHyperparameters,
        "normalise",
        help="average summaries in units of ‖P_s w‖, so that old ones stay comparable",
    )


@dataclass(kw_only=True)
class HessianVectorHyperparameters:
    """Of HessianVector."""

    lr: float = option(0.1, help="step length along the learned direction; 1 is Newton's", above=0)
    lr_direction: float = option(
        0.1, help="lr_d, the rate at which the direction is learned; below 2 / (λ_max + ridge)", above=0
    )
    ridge: float = option(0.1, help="ρ >= 0, added to the diagonal of the Hessian", at_least=0)


@dataclass(kw_only=True)
class PreconditionerHyperparameters:
    """Of K-FAC, as an optimizer and as a direction."""

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
    fisher: str = option(
        "true",
        help="true: labels drawn from the predictions; empirical: the gradients of the loss",
        choices=("true", "empirical"),
    )
    preconditioner: str = option(
        "inverse",
        help="inverse: damping split over the factors; eigen: added to products of eigenvalues; ekfac",
        choices=("inverse", "eigen", "ekfac"),
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
class KFACHyperparameters(PreconditionerHyperparameters):
    """Of K-FAC as an optimizer."""

    lr: float = option(0.003, help="learning rate", above=0)


@dataclass(kw_only=True)
class ExponentialHyperparameters:
    """Of ExponentialAveraging."""

    coefficient: float = option(0.8, help="weight of an update relative to the next one", at_least=0, below=1)


@dataclass(kw_only=True)
class UniformHyperparameters:
    """Of UniformAveraging."""

    period: int = option(
        3, help="updates between swaps; the mean in use covers between one and two periods", at_least=1
    )


@dataclass(kw_only=True)
class StaticHyperparameters:
    """Of StaticAveraging."""

    batches: int = option(4, help="summaries per update, each on a curvature batch of its own", at_least=1)


@dataclass(kw_only=True)
class QuantityHyperparameters:
    """Of the controllers that multiply λ_1 or λ_int by a constant factor."""

    quantity: str = option(
        "step_size",
        help="step_size: λ_1, the factor on all rates; internal_damping: λ_int",
        choices=("step_size", "internal_damping"),
        former={"damping": "step_size"},
    )
    factor: float = option(
        0.99, help="of the quantity at every update; below 1 it falls, above 1 it rises", above=0
    )
    limit: float | None = option(
        0.1, help="multiple of the initial value at which it stops; null: no limit", above=0
    )


@dataclass(kw_only=True)
class PlateauHyperparameters(QuantityHyperparameters):
    """Of the controller Plateau."""

    factor: float = option_of(
        QuantityHyperparameters, "factor", 0.5, help="of the quantity; below 1 it falls, above 1 it rises"
    )
    limit: float | None = option_of(QuantityHyperparameters, "limit", None)
    window: int = option(20, help="updates of the rates whose mean loss is compared", at_least=1)
    patience: int = option(2, help="windows in a row without improvement that are let pass", at_least=0)
    threshold: float = option(
        0.001, help="share of the best mean loss by which a better one must be lower", at_least=0
    )


@dataclass(kw_only=True)
class ProgressHyperparameters:
    """Of the controller Progress."""

    rise: float = option(1.2, help="what λ_1 is multiplied by while the loss falls", above=1)
    fall: float = option(
        0.85, help="what it is multiplied by when the loss has stopped falling", above=0, below=1
    )
    highest: float = option(
        4.0, help="λ_1 beyond which it does not rise, in units of the minimiser of a batch", above=0
    )
    lowest: float = option(0.3, help="λ_1 below which it does not fall", above=0)
    window: int = option(
        6, help="updates over which the trend of the loss is taken; later a third of all so far", at_least=4
    )


@dataclass(kw_only=True)
class AdaptiveHyperparameters:
    """Of the controller Adaptive."""

    accept: float = option(
        0.1, help="share of the predicted decrease below which a step is rejected", at_least=0, below=1
    )
    succeed: float = option(0.75, help="share from which on it is very successful", above=0, at_most=1)
    errors: float = option(1.0, help="standard errors of the batch that count as noise in both", at_least=0)
    increase: float = option(2.0, help="factor on λ_int after a rejection", above=1)
    trials: int = option(2, help="solves with a larger λ_int at one update, at most", at_least=0)
    window: int = option(5, help="updates over which λ_int is judged", at_least=1)
    pull: float = option(
        0.05, help="share of the way back to its base, in logarithms, at every update", at_least=0, at_most=1
    )
    slices: int = option(10, help="parts of the batch from which its standard error is found", at_least=1)


@dataclass(kw_only=True)
class OvershootHyperparameters:
    """Of the controller Overshoot."""

    target: float = option(
        -0.45,
        help="c*, share of the last displacement by which it should have been longer; negative: shorter",
        at_least=-1,
        below=1,
    )
    gain: float = option(0.15, help="κ of λ_1 ← λ_1 exp(κ (c − c*)) at every update", above=0)
    momentum: float = option(
        0.9, help="of the running means of slope and curvature along the displacement", at_least=0, below=1
    )
    bound: float = option(100.0, help="λ_1 stays within this factor of its initial value", above=1)
