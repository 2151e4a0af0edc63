"""The causal transformer: the tokens it sees, the engines in float64, and K-FAC's curvature per token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gnewton import Partition, summarize
from gnewton.models.transformers import CausalAttention, CausalTransformer
from gnewton.optim.kfac.likelihoods import categorical, categorical_last

from .cases import SMALL_TRANSFORMER, TOKENS, Case

CASE = Case("transformer", TOKENS, SMALL_TRANSFORMER)


def test_a_token_sees_those_before_it_alone():
    model, (inputs, _) = CASE.build(), CASE.batch(2)
    before = model(inputs)
    changed = inputs.clone()
    changed[:, 4] = (changed[:, 4] + 1) % TOKENS.symbols
    after = model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).all(-1).any()
    assert torch.allclose(model(inputs[:, :3]), before[:, :3], atol=1e-12)  # shorter sequences


def test_attention_is_that_of_torch():
    attention = CausalAttention(8, 2, 5).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    q, k, v = attention.in_proj(x).reshape(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    wanted = attention.out_proj(heads.transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(attention(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "fisher"])
def test_the_engines_agree_on_losses_per_token(curvature):
    model, (inputs, targets) = CASE.build(), CASE.batch(3)
    partition = Partition.weights_biases(model)
    TOKENS.loss(model(inputs), targets).backward()
    direction = {name: p.grad.clone() for name, p in model.named_parameters()}

    def summary(engine, kind, **more):
        return summarize(
            model, TOKENS.loss, inputs, targets, partition, direction, engine=engine, curvature=kind, **more
        )

    if curvature == "fisher":  # an estimate: its mean is the Gauss-Newton matrix
        wanted = summary("reference", "gauss_newton").hessian
        draw = torch.Generator().manual_seed(0)
        estimate = sum(summary("auto", "fisher", draws=200, generator=draw).hessian for _ in range(10)) / 10
        assert float((estimate - wanted).abs().max() / wanted.abs().max()) < 0.1
        return
    one, other = summary("reference", curvature), summary("tangent", curvature)
    torch.testing.assert_close(other.gradient, one.gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other.hessian, one.hessian, rtol=1e-9, atol=1e-12)
    if curvature == "hessian":
        torch.testing.assert_close(other.third, one.third, rtol=1e-8, atol=1e-11)


def test_drawn_vectors_have_the_curvature_of_the_mean_over_tokens():
    logits = torch.randn(1, 3, 4, dtype=torch.float64)
    sampled = categorical_last(logits.expand(40_000, 3, 4).contiguous(), torch.Generator().manual_seed(0))
    covariance = torch.einsum("nti,nsj->tisj", sampled, sampled).reshape(12, 12) / len(sampled)

    def loss(z):
        return TOKENS.loss(z.reshape(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64))

    wanted = torch.autograd.functional.hessian(loss, logits.reshape(12))
    assert float((covariance - wanted).abs().max()) < 4 / math.sqrt(len(sampled))
    same = categorical(logits.mT.contiguous(), torch.Generator().manual_seed(1))
    assert same.shape == (1, 4, 3)


def test_the_default_has_about_a_tenth_of_a_million_parameters():
    model = CausalTransformer(62, 64, 62, width=64, depth=2, heads=4, expansion=4)
    assert sum(p.numel() for p in model.parameters()) == 112_190
