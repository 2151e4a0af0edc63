"""Derivatives of high order along the groups: closed forms, nested differentiation, interpolation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.polynomial import Chebyshev, Polynomial
from torch import nn

import gnewton
from gnewton.errors import InputError
from gnewton.partition import Partition
from gnewton.summary import LossDerivatives, SummaryError, loss_derivatives, summarize
from gnewton.summary.smooth import DECOMPOSITIONS
from gnewton.summary.tangent.rules import RULES
from gnewton.summary.taylor import derivatives, taylor_rule
from gnewton.summary.taylor.derivatives import coefficients
from gnewton.summary.taylor.series import Series
from gnewton.summary.taylor.series_elementwise import FUNCTIONS
from gnewton.summary.taylor.taylor_rule import SERIES_RULES

from . import oracles, zoo

ORDERS = range(9)


def of_scalar(function, w, u=1.0, **options):
    """The derivatives of orders 0 … 8 of function(w + t u) at t = 0."""
    number = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    model, empty = zoo.Net(lambda m, x: function(m.w), w=number), torch.empty(0)
    direction = {"w": torch.tensor(u, dtype=torch.float64)}
    options = {"engine": "taylor", "order": 8} | options
    return loss_derivatives(model, lambda o, t: o, empty, empty, None, direction, **options)[0].numpy()


def by_recurrence(y, rise):
    """Derivatives of y where y' = rise(y), a polynomial: those of higher order are polynomials in y too."""
    orders, polynomial = [y], Polynomial(rise)
    current = polynomial
    for _ in range(8):
        orders.append(current(y))
        current = current.deriv() * polynomial
    return np.array(orders)


def leibniz(derivatives, x):
    """Derivatives of x f(x) from those of f."""
    return np.array([x * derivatives[0], *(x * derivatives[k] + k * derivatives[k - 1] for k in range(1, 9))])


def falling(p, x):
    """Derivatives of x^p."""
    return np.array([math.prod(p - i for i in range(k)) * x ** (p - k) for k in ORDERS])


def hermite(x):
    """Derivatives of exp(−x²), by Hermite's polynomials."""
    return np.array(
        [(-1) ** k * np.polynomial.hermite.hermval(x, [0] * k + [1]) * math.exp(-x * x) for k in range(8)]
    )


def sigmoid(x):
    return by_recurrence(1 / (1 + math.exp(-x)), [0, 1, -1])


def erf(x):
    return np.array([math.erf(x), *(2 / math.sqrt(math.pi) * hermite(x))])


def gelu(x):
    at = x / math.sqrt(2)
    gauss = 0.5 * erf(at) * np.array([2**-0.5]) ** np.arange(9)
    gauss[0] += 0.5
    return leibniz(gauss, x)


X = 0.7
CLOSED = {
    "exp": (lambda w: torch.exp(2 * w), [2.0**k * math.exp(2 * X) for k in ORDERS]),
    "log": (
        torch.log,
        [math.log(X), *((-1) ** (k - 1) * math.factorial(k - 1) / X**k for k in range(1, 9))],
    ),
    "sin": (torch.sin, [math.sin(X + k * math.pi / 2) for k in ORDERS]),
    "cosh": (torch.cosh, [(math.sinh if k % 2 else math.cosh)(X) for k in ORDERS]),
    "reciprocal": (torch.reciprocal, falling(-1, X)),
    "sqrt": (torch.sqrt, falling(0.5, X)),
    "power": (lambda w: w**2.3, falling(2.3, X)),
    "polynomial": (lambda w: w**5 - 3 * w**2, falling(5, X) - 3 * falling(2, X) * (np.arange(9) <= 2)),
    "tanh": (torch.tanh, by_recurrence(math.tanh(X), [1, 0, -1])),
    "tan": (torch.tan, by_recurrence(math.tan(X), [1, 0, 1])),
    "sigmoid": (torch.sigmoid, sigmoid(X)),
    "softplus": (F.softplus, [math.log1p(math.exp(X)), *sigmoid(X)[:8]]),
    "silu": (F.silu, leibniz(sigmoid(X), X)),
    "erf": (torch.erf, erf(X)),
    "gelu": (F.gelu, gelu(X)),
    "atan": (
        torch.atan,
        [
            math.atan(X),
            *(
                math.factorial(k - 1)
                * math.cos(math.atan(X)) ** k
                * math.sin(k * (math.atan(X) + math.pi / 2))
                for k in range(1, 9)
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_up_to_order_eight(name):
    function, expected = CLOSED[name]
    np.testing.assert_allclose(of_scalar(function, X), expected, rtol=1e-11, atol=1e-12)


def test_whole_powers_hold_at_zero():
    expected = [0, 0, 0, 6, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(of_scalar(lambda w: w**3, 0.0), expected)


def of_rows(function, *, zero_row, order=4, **options):
    """The derivatives of function(w ∘ x), where x has one row, and a row of zeros if ``zero_row``."""
    w, x = torch.tensor([0.3, -0.7, 0.2]).double(), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]).double()
    model = zoo.Net(lambda m, x: function(m.w * x), w=nn.Parameter(w))
    x = x if zero_row else x[:1]
    case = model, lambda o, t: o, x, None, None, [torch.tensor([0.5, 1.0, -0.4]).double()]
    return loss_derivatives(*case, order, **({"engine": "taylor"} | options))[0].numpy()


LENGTHS = {
    "std": lambda h: h.std(-1).sum(),
    "norm": lambda h: h.norm(dim=-1).sum(),
    "normalize": lambda h: F.normalize(h, dim=-1).sin().sum(),
    "each entry": lambda h: torch.linalg.vector_norm(h.unsqueeze(2), dim=2).sum(),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_of_zero_has_no_derivatives(name):
    """A row of zeros adds nothing to any order."""
    result = of_rows(LENGTHS[name], zero_row=True)
    assert result[2:].any() or name == "each entry"
    np.testing.assert_allclose(result, of_rows(LENGTHS[name], zero_row=False), rtol=1e-12, atol=1e-13)


def test_a_length_that_leaves_zero_has_no_derivatives():
    """As in torch: the first derivative of ‖w‖ is zero at w = 0."""
    result = of_rows(lambda h: (h - h.detach()).norm() + h.sum(), zero_row=False)
    np.testing.assert_allclose(result, of_rows(torch.sum, zero_row=False), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", ["std", "var"])
@pytest.mark.parametrize(("entries", "correction"), [(1, 1), (2, 2), (2, 3)])
def test_spreads_without_degrees_of_freedom(name, entries, correction):
    """Of a batch of one, all is nan, as in torch; of more entries, the value is infinite."""

    def forward(m, x):
        return getattr(torch, name)(m.w, 0, correction=correction)

    model = zoo.Net(forward, w=nn.Parameter(torch.tensor([0.3, -0.7]).double()[:entries]))
    case = model, lambda o, t: o, torch.empty(0), None, None, [torch.ones(entries).double()]
    result, summary = loss_derivatives(*case, 2, engine="taylor")[0], summarize(*case, engine="tangent")
    assert not result[0].isfinite()
    assert result[1:].isnan().all()
    assert summary.hessian.isnan().all()
    if entries == 1:
        assert summary.gradient.isnan().all()
        assert loss_derivatives(*case, 2, engine="reference").isnan().all()


POWERS = {
    "1.5": lambda h: F.relu(h) ** 1.5,
    "2.5": lambda h: F.relu(h) ** 2.5,
    "65": lambda h: F.relu(h) ** 65,
    "sqrt": lambda h: F.relu(h).sqrt(),
    "0": lambda h: F.relu(h) ** 0 + h.sin(),
}


@pytest.mark.parametrize("name", POWERS)
def test_powers_of_an_entry_that_stays_at_zero(name):
    """Without the rows that are zero, nested reverse mode needs no power of zero."""
    result = of_rows(lambda h: POWERS[name](h).sum(), zero_row=True)[1:]
    positive = of_rows(lambda h: POWERS[name](h[:, [0, 2]]).sum(), zero_row=False, engine="reference")[1:]
    if name == "0":
        positive += of_rows(lambda h: h[:, 1].sin().sum(), zero_row=False)[1:]
    assert result.all()
    np.testing.assert_allclose(result, positive, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("power", [0.5, 1.5, 2.5, -0.5])
@pytest.mark.parametrize("u", [1.0, -2.0])
def test_powers_of_an_entry_that_leaves_zero(power, u):
    """As by torch: zero below the power, then infinite."""
    result, other = (
        of_scalar(lambda w: w**power, 0.0, u, order=5, engine=e) for e in ("taylor", "reference")
    )
    np.testing.assert_array_equal(result, other)
    assert np.isinf(result[-1])


def test_a_derivative_at_zero_that_is_not_known():
    """|w|³ as (w²)^1.5: the series has no third derivative."""
    result = of_scalar(lambda w: (w * w) ** 1.5, 0.0, order=3)
    np.testing.assert_array_equal(result, [0, 0, np.nan, np.nan])


def test_the_reference_engine_takes_over_where_a_series_is_not_finite(caplog, monkeypatch):
    def with_nan(plan, values, direction, order, positions):
        series = coefficients(plan, values, direction, order, positions)
        series[:, -1] = torch.nan
        return series

    monkeypatch.setattr(derivatives, "coefficients", with_nan)
    np.testing.assert_allclose(of_scalar(torch.exp, X, order=3, engine="auto"), [math.exp(X)] * 4, rtol=1e-12)
    assert "the reference engine takes over: a derivative along a group is not finite" in caplog.text
    assert np.isnan(of_scalar(torch.exp, X, order=3)[-1])
    caplog.clear()
    assert not np.isfinite(of_scalar(torch.log, 0.0, order=3, engine="auto")).all()
    assert "takes over" not in caplog.text


POINTS = torch.tensor([0.15, 0.4, 0.62, 0.9], dtype=torch.float64)
SHIFTED = {"acosh": 1.5, "log": 0.5, "reciprocal": 0.5}
OPTIONS = {"pow.Tensor_Scalar": (1.7,), "pow.Scalar": (1.7,), "logit": (0.2,)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_along_a_curve(name):
    """x(t) = x + 0.3 t − 0.2 t², entry by entry, against nested reverse mode."""
    points = POINTS + SHIFTED.get(name, 0.0)
    points = torch.cat([points, -points, 5 * points]) if name in ("elu", "celu", "hardswish") else points
    options = OPTIONS.get(name, ())
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    t = torch.zeros_like(points, requires_grad=True)
    curve = points + 0.3 * t - 0.2 * t * t
    current = operation(*options, curve) if name == "pow.Scalar" else operation(curve, *options)
    tail = [torch.full_like(points, c).unsqueeze(0) for c in (0.3, -0.2)]
    result = FUNCTIONS[name](Series(points, tail, 5), *options)
    torch.testing.assert_close(result.head, current.detach(), rtol=1e-12, atol=1e-14)
    for n in range(1, 6):
        current = torch.zeros_like(points) if not current.requires_grad else current
        grads = torch.autograd.grad(current.sum(), t, create_graph=True) if current.requires_grad else None
        current = torch.zeros_like(points) if grads is None else grads[0]
        series = result.tail[n - 1][0] if n <= len(result.tail) else torch.zeros_like(points)
        torch.testing.assert_close(
            series * math.factorial(n), current.detach(), rtol=1e-9, atol=1e-10, msg=f"order {n}"
        )


def test_a_quadratic_has_exactly_no_third_and_higher_derivatives():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    model = zoo.Net(lambda m, x: 0.5 * m.p @ (root @ root.T) @ m.p - m.q * m.p.sum(), p=nn.Parameter(root[0]))
    model.q = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    direction = {"p": root[1], "q": torch.tensor(2.0, dtype=torch.float64)}
    empty = torch.empty(0)
    result = loss_derivatives(model, lambda o, t: o, empty, empty, None, direction, 8, engine="taylor")
    assert not result[:, 3:].any()
    assert result[0, 2].item() == pytest.approx((root[1] @ root @ root.T @ root[1]).item())
    assert result[1].tolist() == pytest.approx([result[1, 0].item(), -2 * root[0].sum().item(), *[0] * 7])


# every family of rules, and the fallback: bilinear has an operation without one
LAYERS = (
    *("mlp", "tied", "tied_embedding", "attention", "encoder_prenorm_gelu_eval", "weight_norm", "detached"),
    *("batch_norm_tanh", "batch_norm_eval", "group_norm", "layer_norm", "convolutions", "hyper", "recurrent"),
    *("residual_gates", "reuse", "dropout", "matrix_products", "bilinear", "act_19_PReLU"),
    *("several_losses", "weighted", "pixels", "bce", "bce_logits", "smooth_l1", "huber", "kl", "unreduced"),
)


@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_of_the_zoo_agree_with_nested_reverse_mode(name):
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partitions = zoo.partitions(model)
    for kind in ("per_tensor", "ends") if "ends" in partitions else ("per_tensor",):
        results = []
        for engine in ("taylor", "reference"):
            torch.manual_seed(0)  # the same dropout masks
            case = model, loss_fn, inputs, targets, partitions[kind], direction
            results.append(loss_derivatives(*case, 4, engine=engine))
        gap = (results[0] - results[1]).norm(dim=0) / results[1].norm(dim=0).clamp_min(1e-12)
        assert gap.max() < 1e-9, (kind, gap)


def lstm():
    net = nn.LSTM(6, 4, batch_first=True)
    return zoo.Net(lambda m, x: m.out(m.lstm(x)[0][:, -1]), lstm=net, out=nn.Linear(4, 3)).double()


def test_an_lstm_agrees_with_nested_reverse_mode():
    torch.manual_seed(0)
    model, (inputs, targets) = lstm(), zoo.tokens()
    direction = [torch.randn_like(p) for p in model.parameters()]
    case = model, F.cross_entropy, inputs.double(), targets, "single", direction
    fast = loss_derivatives(*case, 4, engine="taylor")
    torch.testing.assert_close(fast, loss_derivatives(*case, 4, engine="reference"), rtol=1e-10, atol=1e-12)


def test_agrees_with_interpolation_of_the_loss():
    """Polynomials through 19 values of the loss along each group: no differentiation at all."""
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    partition = zoo.partitions(model)["ends"]
    result = loss_derivatives(model, loss_fn, inputs, targets, partition, direction, 6, engine="taylor")
    for s in range(len(partition)):

        def phi(t, s=s):
            epsilon = torch.zeros(len(partition), dtype=torch.float64)
            epsilon[s] = t
            with torch.no_grad():
                return oracles.phi(model, loss_fn, inputs, targets, partition, direction, epsilon).item()

        curve = Chebyshev.interpolate(np.vectorize(phi), 18, domain=[-0.15, 0.15])
        expected = [curve.deriv(k)(0.0) if k else curve(0.0) for k in range(7)]
        np.testing.assert_allclose(result[s].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_first_three_orders_are_those_of_a_summary():
    model, loss_fn, inputs, targets, direction = zoo.make("encoder_prenorm_gelu_eval")
    case = model, loss_fn, inputs, targets, "per_tensor", direction
    result, summary = gnewton.loss_derivatives(*case), summarize(*case)
    expected = torch.stack(
        [summary.loss.expand(len(summary)), summary.gradient, summary.hessian.diagonal(), summary.third], 1
    )
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


def test_groups_that_are_slices_and_groups_one_at_a_time():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    case = model, loss_fn, inputs, targets, "per_channel", direction
    result = loss_derivatives(*case, 4, engine="taylor")
    assert len(result) == 6 + 4 + 3
    torch.testing.assert_close(result, loss_derivatives(*case, 4, engine="reference"), rtol=1e-10, atol=1e-13)
    alone = loss_derivatives(*case, 4, engine="taylor", max_memory=1)
    torch.testing.assert_close(result, alone, rtol=1e-12, atol=1e-15)


def test_the_length_of_the_direction_costs_no_digit_in_single_precision():
    """Without a scale, the eighth powers of these lengths would leave the range of float32."""
    model, loss_fn, inputs, targets, direction = zoo.make("mlp", torch.float32)
    measure = LossDerivatives(model, loss_fn, None, engine="taylor")
    plain = measure.derivatives(inputs, targets, direction, 8)
    short = measure.derivatives(inputs, targets, {n: u * 2.0**-30 for n, u in direction.items()}, 8)
    assert torch.equal(short, plain * (2.0**-30) ** torch.arange(9, dtype=torch.float64))
    exact, *_ = zoo.make("mlp")
    u = {n: v.double() for n, v in direction.items()}
    double = loss_derivatives(exact, loss_fn, inputs.double(), targets, None, u, 8)
    assert ((plain - double).norm(dim=0) / double.norm(dim=0)).max() < 1e-4


def test_operations_without_a_rule_are_differentiated_by_themselves():
    for function in (torch.lgamma, lambda w: torch.atan2(w, 1 + w * w)):
        result, other = (of_scalar(function, X, order=5, engine=e) for e in ("taylor", "reference"))
        np.testing.assert_allclose(result, other, rtol=1e-10)


def test_no_series_rule_is_unreachable():
    """There is none for an operation that tracing replaces, or for one with a linear rule."""
    linear = {op for op, rule in RULES.items() if not rule.adjoint}
    assert not {str(op) for op in SERIES_RULES if op in DECOMPOSITIONS or op in linear}


def choices(m, x):
    h = torch.tanh(m.a(x))
    tied = torch.cat([h, h, m.b(h)], 1)
    parts = [
        *(torch.maximum(h, m.w), torch.minimum(m.w, h), torch.maximum(h, x), torch.minimum(x, m.w)),
        *(torch.maximum(h, h.clone()), tied.amax(1), tied.amin((0, 1)), tied.amax(0, keepdim=True)),
        *(tied.unsqueeze(2).amin((1, 2), keepdim=True), h.sum().amax(), torch.amin(h)),
        *(F.glu(tied[:, :6], 1), F.glu(m.w[:4]), tied.logsumexp(1), h.logsumexp((0, 1), keepdim=True)),
    ]
    return torch.stack([part.sin().sum() for part in parts])


def test_choices_gates_and_sums_of_exponentials():
    torch.manual_seed(0)
    model = zoo.Net(choices, a=nn.Linear(5, 5), b=nn.Linear(5, 2), w=nn.Parameter(torch.randn(5))).double()
    direction = [torch.randn_like(p) for p in model.parameters()]
    case = model, lambda o, t: o.exp().sum(), torch.randn(6, 5).double(), None, "per_tensor", direction
    fast = loss_derivatives(*case, 4, engine="taylor")
    torch.testing.assert_close(fast, loss_derivatives(*case, 4, engine="reference"), rtol=1e-10, atol=1e-11)


def test_reverse_mode_replaces_a_wrong_nested_forward_mode():
    def forward(m, x):
        return torch.linalg.det(m.p @ m.p.T + torch.eye(3, dtype=torch.float64)).log()

    torch.manual_seed(0)
    model = zoo.Net(forward, p=nn.Parameter(torch.randn(3, 3, dtype=torch.float64)))
    direction, empty = [torch.randn(3, 3, dtype=torch.float64)], torch.empty(0)
    case = model, lambda o, t: o, empty, empty, None, direction
    fast = loss_derivatives(*case, 4, engine="taylor")
    torch.testing.assert_close(fast, loss_derivatives(*case, 4, engine="reference"), rtol=1e-9, atol=1e-12)


def test_a_wrong_forward_mode_is_detected(monkeypatch):
    right = taylor_rule._by_forward_mode
    monkeypatch.setattr(taylor_rule, "_by_forward_mode", lambda *a: [1.01 * x for x in right(*a)])
    monkeypatch.setattr(taylor_rule, "_verdicts", {})
    result = of_scalar(torch.lgamma, X, order=4)
    assert list(taylor_rule._verdicts.values()) == [False]
    np.testing.assert_allclose(result, of_scalar(torch.lgamma, X, order=4, engine="reference"), rtol=1e-10)


def test_a_verdict_holds_for_one_precision_and_rests_on_finite_numbers(monkeypatch):
    monkeypatch.setattr(taylor_rule, "_verdicts", {})
    kind = torch.ops.aten.lgamma.default, 1
    result = of_scalar(torch.lgamma, 0.0, order=3)
    assert not np.isfinite(result).any()
    assert taylor_rule._verdicts == {}
    of_scalar(torch.lgamma, X, order=3)
    assert taylor_rule._verdicts == {(*kind, torch.float64): True}
    right = taylor_rule._by_forward_mode
    monkeypatch.setattr(taylor_rule, "_by_forward_mode", lambda *a: [1.1 * x for x in right(*a)])
    result = of_scalar(lambda w: torch.lgamma(w.float()), X, order=3)
    assert taylor_rule._verdicts[(*kind, torch.float32)] is False
    expected = of_scalar(torch.lgamma, X, order=3, engine="reference")
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.linalg.vector_norm(m.a * m.b, dim=0),
        lambda m, x: torch.var(m.a * m.b, dim=0, correction=0) + m.a * m.b,
    ],
    ids=["norm", "variance"],
)
@pytest.mark.parametrize("engine", ["taylor", "auto"])
def test_the_axis_of_a_number_is_not_that_of_the_groups(function, engine):
    numbers = (torch.tensor(value, dtype=torch.float64) for value in (1.1, 2.2))
    model, empty = (
        zoo.Net(function, **dict(zip("ab", map(nn.Parameter, numbers), strict=True))),
        torch.empty(0),
    )
    direction = {"a": torch.tensor(0.7, dtype=torch.float64), "b": torch.tensor(-1.3, dtype=torch.float64)}
    result, expected = (
        loss_derivatives(model, lambda o, t: o, empty, empty, None, direction, order=3, engine=name)
        for name in (engine, "reference")
    )
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


class Doubled(torch.autograd.Function):
    """A backward pass that is not the derivative."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_a_model_without_a_trace_goes_to_the_reference_engine(caplog):
    result = of_scalar(lambda w: torch.exp(Doubled.apply(w)), X, order=3, engine="auto")
    np.testing.assert_allclose(result, math.exp(X) * np.array([1, 2, 4, 8]), rtol=1e-12)
    assert "derivatives: the reference engine takes over: the trace does not reproduce" in caplog.text
    with pytest.raises(SummaryError, match="the trace does not reproduce the model's gradient"):
        of_scalar(lambda w: torch.exp(Doubled.apply(w)), X, order=3)


@torch.library.custom_op("gnewton_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


@torch.library.custom_op("gnewton_tests::cube_slope", mutates_args=())
def cube_slope(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return 3 * x**2 * grad


cube.register_fake(torch.empty_like)
cube_slope.register_fake(lambda x, grad: torch.empty_like(x))
cube.register_autograd(
    lambda ctx, grad: cube_slope(ctx.saved_tensors[0], grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def test_an_operation_without_derivatives_is_named():
    """Its backward pass has no derivatives; torch's forward mode takes it for constant, without an error."""
    with pytest.raises(SummaryError, match="no derivatives of order 2 of gnewton_tests.cube.default"):
        of_scalar(cube, X, order=2)


def test_nothing_moves_the_loss():
    model = zoo.Net(lambda m, x: x.sum() + m.p.detach().sum(), p=nn.Parameter(torch.ones(2)))
    result = loss_derivatives(model, lambda o, t: o, torch.ones(3), None, None, [torch.ones(2)], 3)
    assert result.tolist() == [[5.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "derivatives: order=0: must be an integer from 1 to 8"),
        ({"order": 9}, "derivatives: order=9: must be an integer from 1 to 8"),
        ({"order": 2.0}, "derivatives: order=2.0: must be an integer from 1 to 8"),
        ({"engine": "fast"}, "derivatives: engine=fast"),
        ({"max_memory": 0}, "derivatives: max_memory=0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        of_scalar(torch.exp, X, **options)


def test_a_direction_that_lacks_a_group_is_zero_there():
    model, loss_fn, inputs, targets, direction = zoo.make("mlp")
    direction["2.weight"] = torch.zeros_like(direction["2.weight"])
    result = loss_derivatives(model, loss_fn, inputs, targets, None, direction, 5)
    names = Partition.per_tensor(model).names
    assert not result[names.index("2.weight"), 1:].any()
    assert result[names.index("0.weight"), 1:].all()
