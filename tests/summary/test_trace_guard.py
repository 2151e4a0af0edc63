"""A summary is always that of the present loss, whatever has changed since it was traced."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from gnewton.partition import Partition
from gnewton.summary import Summarizer
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Problem
from gnewton.summary.tangent import trace_cache, trace_guard, tracing
from gnewton.summary.tangent.passes import forward

from . import zoo
from .kinds import INPUTS, KINDS, TARGETS, net, penalised
from .test_zoo import differences


def pair(make, **options):
    torch.manual_seed(0)
    model, loss_fn, change = make()
    model.double()
    partition = Partition.per_tensor(model)
    generator = torch.Generator().manual_seed(3)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()
    }
    engines = [Summarizer(model, loss_fn, partition, **options)]
    third = options.get("third", True)
    engines.append(Summarizer(model, loss_fn, partition, third=third, engine="reference"))
    return model, direction, change, *engines


def moved(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.97)


# a part of the batch draws and asks for itself: what it finds need not be what the whole finds
WHOLE = ("python_randomness", "dropout_rate", "teacher_in_place", "teacher_replaced", "choice_by_values")


@pytest.mark.parametrize("parts", ["whole", "parts"])
@pytest.mark.parametrize("name", KINDS)
def test_the_summary_is_that_of_the_present_loss(name, parts):
    if parts == "parts" and name in WHOLE:
        pytest.skip("the loss of a part is no part of the loss")
    options = {"max_memory": 2000} if parts == "parts" else {}
    model, direction, change, fast, slow = pair(KINDS[name], **options)
    for i in range(7) if parts == "whole" else (0, 1, 2, 5):
        change(i)
        a = fast.summarize(INPUTS, TARGETS, direction)
        b = slow.summarize(INPUTS, TARGETS, direction)
        assert max(differences(a, b)) < 1e-10, f"at summary {i}"
        moved(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["number_in_a_closure", "switch_after_the_attribute_is_idle", "dropout_rate"]
)
def test_compiled_passes_notice_as_well(name, monkeypatch):
    # what is noticed does not depend on the code: torch captures the graph once, and generates none
    capture = torch.compile if name == "number_in_a_closure" else lambda target, backend: target
    monkeypatch.setattr(torch, "compile", lambda target, **options: capture(target, backend="eager"))
    # each change costs a compilation, and one without third derivatives less
    model, direction, change, fast, slow = pair(KINDS[name], engine="compiled", third=False)
    for i in (4, 4, 5) if name == "number_in_a_closure" else (4, 4, 5, 6):
        change(i)
        a = fast.summarize(INPUTS, TARGETS, direction)
        b = slow.summarize(INPUTS, TARGETS, direction)
        assert max(differences(a, b)) < 1e-9, f"at summary {i}"
        moved(model)


@pytest.mark.parametrize("name", ["number_in_a_closure", "teacher_replaced", "dropout_rate", "hooks"])
def test_losses_are_compared_where_operations_cannot_be(name, monkeypatch):
    def impossible(*args, **kwargs):
        raise RuntimeError("no replay")

    monkeypatch.setattr(trace_cache, "computed_name", impossible)
    model, direction, change, fast, slow = pair(KINDS[name])
    for i in range(7):
        change(i)
        a = fast.summarize(INPUTS, TARGETS, direction)
        b = slow.summarize(INPUTS, TARGETS, direction)
        assert max(differences(a, b)) < 1e-10, f"at summary {i}"
        moved(model)


def test_rounding_makes_no_new_trace_each_time(monkeypatch):
    """Where losses are compared, a gap that a new trace has as well is rounding."""
    monkeypatch.setattr(trace_cache, "computed_name", lambda *args, **kwargs: None)
    gaps = iter([1e-13, 2e-13, 3e-13, 1e-13, 2e-13, 1e-12, 3e-12] * 5)
    eager = trace_cache.checks.eager_loss
    monkeypatch.setattr(trace_cache.checks, "eager_loss", lambda *args: eager(*args) * (1 + next(gaps)))
    traced = []
    trace = trace_cache.trace
    monkeypatch.setattr(trace_cache, "trace", lambda *args: traced.append(1) or trace(*args))
    _, direction, _, fast, _ = pair(KINDS["number_in_a_closure"], engine="tangent")
    for _ in range(30):
        fast.summarize(INPUTS, TARGETS, direction)
    assert len(fast.tangent_engine.traces) == 1
    assert len(traced) <= 4


def test_a_loss_that_stays_is_traced_once(monkeypatch):
    traced = []
    trace = trace_cache.trace
    monkeypatch.setattr(trace_cache, "trace", lambda *args: traced.append(1) or trace(*args))
    for name in ("class_weights_in_place", "captured_tensor_in_place", "teacher_in_place"):
        traced.clear()
        model, direction, change, fast, _ = pair(KINDS[name])
        for i in range(5):
            change(i)
            fast.summarize(INPUTS, TARGETS, direction)
            moved(model)
        assert len(traced) == 1, f"{name}: the trace holds the tensor itself"


def test_an_earlier_loss_is_recognised():
    _, direction, change, fast, _ = pair(KINDS["cut_of_the_gradient"], engine="tangent")
    for i in (0, 0, 0, 1, 1, 1, 0, 1, 0, 1):
        change(i)
        fast.summarize(INPUTS, TARGETS, direction)
    assert len(fast.tangent_engine.traces) == 2


def test_long_annealing_goes_on():
    """More summaries than any period after which a trace could be looked at again."""
    model, direction, _, _, _ = pair(KINDS["number_in_a_closure"])
    state = [0.0]
    fast = Summarizer(model, penalised(lambda: state[0]), Partition.per_tensor(model), third=False)
    slow = Summarizer(
        model, penalised(lambda: state[0]), Partition.per_tensor(model), third=False, engine="reference"
    )
    for i in range(12):
        state[0] = 1e-3 * (i // 3)
        a, b = (s.summarize(INPUTS, TARGETS, direction) for s in (fast, slow))
        torch.testing.assert_close(a.hessian, b.hessian, rtol=1e-10, atol=1e-12)


def test_a_comparison_computes_nothing_twice(monkeypatch):
    """Of the model's matrix products none is formed again."""
    _, direction, _, fast, _ = pair(lambda: (net(), F.cross_entropy, None))
    fast.summarize(INPUTS, TARGETS, direction)
    computed = []
    compute = trace_guard._Replay._compute

    def spy(self, func, args, kwargs):
        computed.append(func)
        return compute(self, func, args, kwargs)

    monkeypatch.setattr(trace_guard._Replay, "_compute", spy)
    fast.summarize(INPUTS, TARGETS, direction)
    assert {str(op) for op in computed} <= {"aten.detach.default"}


def test_what_the_model_keeps_stays_as_it_was():
    """Attributes that the forward pass sets, and the random streams of Python and NumPy."""
    import random

    import numpy as np

    from .kinds import Model

    def forward(m, x):
        m.calls += 1
        m.last = m.net(x)
        return m.last * (1 + 0 * random.random() + 0 * np.random.rand())

    model, direction, _, fast, slow = pair(lambda: (Model(forward, calls=0), F.cross_entropy, None))
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist(), dict(vars(model))
    for engine in (fast, slow):
        for _ in range(2):
            engine.summarize(INPUTS, TARGETS, direction)
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert dict(vars(model)) == before[2]


def test_a_loss_that_never_stays_goes_to_the_reference_engine(caplog):
    """Its own source of numbers, which nobody can set back."""
    draws = iter(range(1, 100))
    model, direction, _, _, _ = pair(KINDS["number_in_a_closure"])
    partition = Partition.per_tensor(model)
    summarizer = Summarizer(model, lambda o, t: F.cross_entropy(o, t) * next(draws), partition)
    with caplog.at_level(logging.WARNING, "gnewton.summary"):
        for _ in range(4):
            summarizer.summarize(INPUTS, TARGETS, direction)
    assert sum("takes over" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("name", zoo.DISTINCT)
def test_a_replay_writes_into_nothing_that_is_lent(name):
    """Neither into the program's values nor into the draws that compiled passes will read."""
    model, loss_fn, inputs, targets, _ = zoo.make(name)
    problem = Problem(model, loss_fn, zoo.partitions(model)["per_tensor"])
    with without_side_effects(problem):
        program = tracing.trace(problem, inputs, targets)
    leaves = {n: p.requires_grad_() for n, p in problem.parameters().items()}
    trees = (problem.constants(), inputs, targets)
    with without_side_effects(problem):
        values = forward(program, leaves, pytree.tree_leaves(trees))
    drawn = [v if step.random else None for v, step in zip(values, program.steps, strict=True)]
    for lent, blank in ((values, False), (drawn, True)):
        before = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), [lent, trees])
        names = trace_guard.OperationNames(program)
        results = [
            trace_guard.computed_name(problem, names, trees, leaves, lent, blank=blank) for _ in range(3)
        ]
        assert results[0] is not None
        assert len(set(results)) == 1
        pairs = zip(pytree.tree_leaves(before), pytree.tree_leaves([lent, trees]), strict=True)
        for a, b in pairs:
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b.detach(), rtol=0, atol=0, equal_nan=True)
