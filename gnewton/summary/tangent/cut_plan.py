"""The plan of the passes for the Gauss–Newton matrix: contributions of the loss, none of the model.

H̄ is a sum over the steps v of the program, Σ_v ⟨x̄_v, D²f_v[ẋ^s, ẋ^t]⟩ (docs/engine.md). The steps that lead
to the outputs of the model form J, those behind them the loss. The sum over the latter alone is
Uᵀ Jᵀ ∇²ℓ J U, with ∇²ℓ the Hessian of the loss in the outputs.
"""

from __future__ import annotations

from dataclasses import replace

from gnewton.partition import Partition
from gnewton.summary.tangent.plan import PassPlan, make_plan
from gnewton.summary.tangent.program import Program


def model_part(program: Program) -> frozenset[int]:
    """The steps that lead to an output of the model, parameters and inputs among them."""
    steps = program.steps
    seen: set[int] = set(program.parameters.values())
    stack = [i for i in program.cut if steps[i].needed]
    while stack:
        i = stack.pop()
        if i not in seen:
            seen.add(i)
            stack.extend(steps[i].reads)
    return frozenset(seen)


def boundary(program: Program, model: frozenset[int]) -> tuple[int, ...]:
    """The active steps of the model that the loss reads: its outputs, and parameters of a penalty."""
    steps = program.steps
    read = {
        j
        for i, step in enumerate(steps)
        if step.active and i not in model
        for j in step.reads
        if j in model and steps[j].active
    }
    return tuple(sorted(read))


def make_cut_plan(program: Program, partition: Partition, *, third: bool, diagonal: bool) -> PassPlan:
    """Plan the passes: the loss alone reads adjoints, and the backward pass forms the gradient."""
    plan = make_plan(program, partition, third=third, diagonal=diagonal)
    model = model_part(program)
    behind = tuple(i for i, rule in plan.rules.items() if i not in model and rule.adjoint)
    return replace(plan, adjoints=behind, taken=frozenset())
