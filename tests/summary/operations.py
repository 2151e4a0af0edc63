"""Small networks that go through one class of operations each; the zoo takes them in with its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A module whose forward pass is a plain function of itself and the inputs."""

    def __init__(self, forward, **members):
        super().__init__()
        for name, member in members.items():
            if isinstance(member, torch.Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def flat(classes=3):
    return torch.randn(6, 5), torch.randint(0, classes, (6,))


def images(classes=3, channels=2, size=8):
    return torch.randn(4, channels, size, size), torch.randint(0, classes, (4,))


def tokens(classes=3, length=4, width=6):
    return torch.randn(3, length, width), torch.randint(0, classes, (3,))


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


# --- products -----------------------------------------------------------------------------------------------


def matrix_products():
    def forward(m, x):
        h = torch.tanh(torch.addmm(m.b, x, m.w, beta=0.7, alpha=1.3))
        cube = h.unsqueeze(1) * m.v
        g = torch.baddbmm(m.c, cube, torch.tanh(cube.mT), beta=0.5, alpha=2.0)
        s = torch.einsum("nij,jk->nik", g, m.k).sigmoid()
        scalar = torch.dot(m.p, torch.tanh(m.q)) + (m.w @ m.p).sum()
        y = torch.mv(h, m.p).unsqueeze(1) + scalar * s.mean(1)
        return y + torch.outer(m.q, m.p[:3]).mean(0) + torch.bmm(s, s.mT).mean((1, 2)).unsqueeze(1)

    return Net(
        forward,
        b=parameter(5), w=parameter(5, 5), v=parameter(4, 1), c=parameter(4, 4), k=parameter(4, 3),
        p=parameter(5), q=parameter(5),
    )  # fmt: skip


def bilinear():
    return Net(
        lambda m, x: m.f(torch.tanh(m.a(x)), m.b(x)),
        a=nn.Linear(5, 4),
        b=nn.Linear(5, 4),
        f=nn.Bilinear(4, 4, 3),
    )


def transposed():
    def forward(m, x):
        h = torch.tanh(m.two(x))
        line = torch.sigmoid(m.one(h.mean(2)))
        cube = F.softplus(m.three(h.unsqueeze(2)))
        return m.out(torch.cat([h.mean((2, 3)), line.mean(2), cube.mean((2, 3, 4))], 1))

    return Net(
        forward,
        two=nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        one=nn.ConvTranspose1d(4, 2, 3, stride=2),
        three=nn.ConvTranspose3d(4, 2, (2, 1, 1), bias=False),
        out=nn.Linear(8, 3),
    )


def depthwise():
    return nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.SiLU(),
        nn.Conv2d(4, 8, 3, padding="same", groups=4, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(8, 3, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


# --- shapes and sums ----------------------------------------------------------------------------------------


def reductions():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        parts = [
            h.sum(1), h.mean(1), h.var(1), h.std(1, correction=0), h.norm(dim=1), (h + 2).prod(1),
            h.logsumexp(1),
            h.amax(1), h.amin(1), h.max(1).values, h.min(1).values, h.median(1).values, h.norm(p=3, dim=1),
            (h + 2).cumprod(1)[:, -1], h.cumsum(1)[:, 2], h.topk(2, 1).values.sum(1), h.sort(1).values[:, 1],
            torch.linalg.vector_norm(h, dim=1), h.abs().sum(1), torch.cdist(h, m.t).sum(1),
        ]  # fmt: skip
        return m.out(torch.stack(parts, 1)) + h.mean() + h.var() + h.max() + h.norm() + h.trace()

    return Net(forward, a=nn.Linear(5, 5), t=parameter(2, 5), out=nn.Linear(20, 3))


def lengths_and_choices():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        index = torch.tensor([[0, 1, 1, 2, 0]]).expand(6, 5)
        ends = [h.scatter_reduce(1, index, x * m.w, kind) for kind in ("sum", "mean", "amax", "amin")]
        ends += [h.scatter_reduce(1, index, h * h, kind, include_self=False) for kind in ("mean", "amax")]
        parts = [
            torch.linalg.vector_norm(h, dim=1, keepdim=True), h.view(6, 5, 1).norm(dim=(1, 2)),
            F.normalize(h, dim=1), h.var(1), h.std(1, correction=2, keepdim=True),
            h.view(6, 5, 1).var((1, 2)),
            torch.maximum(h, m.w), torch.minimum(h, x), torch.clamp(h, min=m.w), torch.clamp(h, max=m.w),
            h.amax(1), h.view(6, 5, 1).amin((1, 2), keepdim=True), F.prelu(h, m.p), F.logsigmoid(3 * h),
            torch.addcmul(m.w, h, h[:, :1], value=0.7), torch.addcmul(h, m.w, m.w), F.glu(h[:, :4], 1),
            h.logsumexp(1), h.view(6, 5, 1).logsumexp((1, 2), keepdim=True), *ends,
        ]  # fmt: skip
        sums = torch.stack([part.reshape(6, -1).sum(1) for part in parts], 1)
        return m.out(sums.sin()) + torch.vdot(m.w, m.w.tanh()) + m.w.max() - m.w.norm()

    return Net(forward, a=nn.Linear(5, 5), w=parameter(5), p=parameter(5), out=nn.Linear(25, 3))


def products_of_sets():
    def forward(m, x):
        h, index = torch.tanh(m.a(x)) + 1.5, torch.tensor([[0, 1, 1, 3, 0]]).expand(6, 5)
        parts = [h.scatter_reduce(1, index, h * m.w, "prod", include_self=own) for own in (True, False)]
        return m.out(torch.cat(parts, 1).sin())

    return Net(forward, a=nn.Linear(5, 5), w=parameter(5), out=nn.Linear(10, 3))


def distances():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        kernel = torch.exp(-0.5 * torch.cdist(h, h) ** 2) + 0.3 * torch.eye(6, dtype=x.dtype)
        parts = torch.stack([
            torch.linalg.cholesky(kernel).diagonal(), h.logcumsumexp(1)[:, 3], torch.logcumsumexp(h, 0)[:, 1],
            torch.cdist(h, m.t, p=1).sum(1), torch.cov(h)[0], h.corrcoef()[1] + h.T.cov(correction=0).sum(),
        ], 1)  # fmt: skip
        parts[:, ::2] += torch.pdist(h).log().mean()
        return m.out(parts)

    return Net(forward, a=nn.Linear(5, 5), t=parameter(2, 5), out=nn.Linear(6, 3))


def views():
    def forward(m, x):
        h = torch.tanh(m.a(x))  # (6, 8)
        left, right = h.chunk(2, 1)
        a, b = h.split([3, 5], 1)
        first, *_ = h.unbind(0)
        square = h.view(6, 2, 4).permute(0, 2, 1).reshape(6, 8)
        parts = [
            left * right, a.repeat(1, 2), b.flip(1), h.roll(1, 1),
            h[:, [0, 3, 3]], h[::2].repeat_interleave(2, 0),
            h.gather(1, m.index), h.masked_fill(m.mask, 0.3), square, h.narrow(1, 1, 2),
            h.unfold(1, 3, 2).sum(-1),
            h.tril(), h.diagonal(0).expand(6, 6), first.expand_as(h), h.index_select(1, m.index[0]),
            h.scatter(1, m.index, a[:, :2]), h.clone().index_add_(1, m.index[0], b[:, :2]),
            h.index_put((m.index[0],), first),
            F.pad(h, (1, 2)), F.pad(h.unsqueeze(1), (1, 1), mode="reflect").squeeze(1), h.T.reshape(6, 8),
            torch.where(h > 0, h, h * h), torch.movedim(h.view(6, 2, 2, 2), 1, 3).flatten(1),
            h[m.mask].sum().expand(6, 1),
            h.unsqueeze(1).expand(-1, 2, -1).flatten(1), torch.meshgrid(first, first, indexing="ij")[1][:6],
        ]  # fmt: skip
        return torch.stack([m.out(p.sum(1, keepdim=True).sin()) for p in parts]).mean(0)

    return Net(
        forward,
        a=nn.Linear(5, 8),
        out=nn.Linear(1, 3),
        index=torch.tensor([[1, 4], [0, 2], [3, 5], [2, 1], [5, 0], [4, 3]]),
        mask=torch.arange(48).view(6, 8) % 3 == 0,
    )


def image_views():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        parts = [
            F.pixel_shuffle(h, 2), F.pixel_unshuffle(h, 2), F.channel_shuffle(h, 2), F.unfold(h, 3, stride=2),
            F.fold(F.unfold(h, 2), (8, 8), 2), F.interpolate(h, scale_factor=2, mode="nearest"),
            F.interpolate(h, size=5, mode="bicubic"), F.pad(h, (1, 1, 1, 1), mode="replicate"),
            h.rot90(1, (2, 3)),
            F.interpolate(h.mean(2), size=5, mode="linear"), F.interpolate(h.unsqueeze(2),
            size=3, mode="trilinear"),
        ]  # fmt: skip
        return m.out(torch.stack([p.sin().flatten(1).mean(1) for p in parts], 1))

    return Net(forward, a=nn.Conv2d(2, 4, 1), out=nn.Linear(11, 3))


def pooling():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        line, cube = h.flatten(2), h.unsqueeze(2).repeat(1, 1, 3, 1, 1)
        parts = [
            F.max_pool2d(h, 3, stride=2, padding=1), F.max_pool2d(h, 2, dilation=2),
            F.adaptive_max_pool2d(h, 3),
            F.avg_pool2d(h, 3, stride=2, padding=1, count_include_pad=False), F.adaptive_avg_pool2d(h, 3),
            F.max_pool1d(line, 4), F.avg_pool1d(line, 3, padding=1), F.adaptive_max_pool1d(line, 5),
            F.adaptive_avg_pool1d(line, 5), F.max_pool3d(cube, 2), F.avg_pool3d(cube, 2),
            F.lp_pool2d(h.abs() + 1, 3, 2),
            F.adaptive_avg_pool3d(cube, 2), F.adaptive_max_pool3d(cube, 2),
            h.flatten(1).unsqueeze(1).max(2).values,
        ]  # fmt: skip
        return m.out(torch.stack([p.sin().flatten(1).mean(1) for p in parts], 1))

    return Net(forward, a=nn.Conv2d(2, 4, 3), out=nn.Linear(15, 3))


# --- normalisations and attention ---------------------------------------------------------------------------


def norms_of_one_dimension():
    return nn.Sequential(
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.Linear(6, 3),
    )


def norms_of_three_dimensions():
    def forward(m, x):
        h = m.batch(m.a(x.unsqueeze(2)))
        h = m.group(torch.sigmoid(h))
        return m.out(m.instance(h.flatten(2)).exp().mean(2))

    return Net(
        forward,
        a=nn.Conv3d(2, 4, (1, 3, 3)),
        batch=nn.BatchNorm3d(4),
        group=nn.GroupNorm(2, 4, affine=False),
        instance=nn.InstanceNorm1d(4, affine=True),
        out=nn.Linear(4, 3),
    )


def other_norms():
    def forward(m, x):
        h = m.rms(torch.tanh(m.a(x)).unsqueeze(1))
        h = m.plain(m.wide(h.expand(-1, 2, -1)))
        return m.out(F.normalize(F.local_response_norm(h.mT, 2), dim=1).flatten(1))

    return Net(
        forward,
        a=nn.Linear(5, 6),
        rms=nn.RMSNorm(6),
        wide=nn.LayerNorm((2, 6), bias=False),
        plain=nn.LayerNorm(6, elementwise_affine=False),
        out=nn.Linear(12, 3),
    )


def masked_attention(dropout=0.0):
    def forward(m, x):
        q, k, v = (h.unflatten(-1, (2, 3)).transpose(1, 2) for h in m.qkv(x).chunk(3, dim=-1))
        mask = torch.tensor([[1, 1, 0, 1]], dtype=torch.bool, device=x.device)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        b = F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias.tanh(), scale=0.3)
        return m.out((a + b).transpose(1, 2).flatten(2).mean(1))

    return Net(forward, qkv=nn.Linear(6, 18), bias=parameter(4, 4), out=nn.Linear(6, 3))


def cells(kind):
    def forward(m, x):
        return m.out(m.cell(x)[0][:, -1])

    return Net(forward, cell=kind(6, 4, batch_first=True), out=nn.Linear(4, 3))


def embeddings():
    def forward(m, x):
        h = m.table(x) + m.place(torch.arange(3, device=x.device))
        return m.out(torch.tanh(h.flatten(1)))

    return Net(forward, table=nn.Embedding(7, 4), place=nn.Embedding(3, 4), out=nn.Linear(12, 7))


def dropouts():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Dropout(0.3), nn.Tanh(), nn.FeatureAlphaDropout(0.3), nn.Conv2d(4, 4, 3),
        nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(64, 3), nn.Dropout(1.0), nn.Linear(3, 3),
    )  # fmt: skip


def functions():
    """Element-wise functions with derivatives of their own, and others without."""

    def forward(m, x):
        h = torch.tanh(m.a(x))
        y = h.abs() + 0.5
        parts = [
            h.exp(), y.log(), y.sqrt(), y.rsqrt(), y.reciprocal(), h.sin(), h.cos(), h.tan(), h.erf(),
            h.expm1(), y.log1p(), y.log2(), h.atan(), h.asin(), h.sinh(), h.cosh(), h**2, h**3, y**0.3,
            y ** (h + 1), 2.0**h, h.clamp(-0.3, 0.4), h.clamp_min(0), torch.maximum(h, x),
            torch.minimum(h, y), torch.atan2(h, y), torch.hypot(h, y), y.lgamma(), torch.addcmul(h, h, y),
            torch.addcdiv(h, h, y), torch.lerp(h, y, 0.3), torch.logaddexp(h, y), 1 / y, h / y, h.sign() * y,
            h.round() + h, torch.xlogy(y, y), y.fmod(0.7), F.glu(torch.cat([h, y], 1), 1),
            F.threshold(h, 0.1, 0.0), F.softsign(h), 3 - h, h - 2 * y, torch.sinc(h), torch.special.erfcx(h),
            torch.nan_to_num(h),
        ]  # fmt: skip
        return m.out(torch.stack(parts).mean(0))

    return Net(forward, a=nn.Linear(5, 5), out=nn.Linear(5, 3))


# --- losses -------------------------------------------------------------------------------------------------


def cross_entropies(outputs, targets):
    """Every option of cross-entropy and of the likelihood below it, alone and together."""
    weight = torch.linspace(0.5, 2.0, outputs.shape[1], dtype=outputs.dtype)
    shares = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype) * 0.8 + 0.2 / outputs.shape[1]
    return (
        F.cross_entropy(outputs, targets, label_smoothing=0.2, weight=weight)
        + F.cross_entropy(outputs, targets, ignore_index=1, label_smoothing=0.1)
        + 0.1 * F.cross_entropy(outputs, targets, weight=weight, reduction="sum")
        + F.cross_entropy(outputs, shares, weight=weight)
        + F.nll_loss(outputs.log_softmax(1), targets, weight=weight)
        + F.nll_loss(outputs, targets, reduction="none").square().mean()
    )


def entrywise(outputs, targets):
    """Losses entry by entry, with weights, with every reduction, and with a target that moves."""
    hot = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    weight = torch.linspace(0.5, 2.0, outputs.shape[1], dtype=outputs.dtype)
    p = outputs.sigmoid()
    return (
        F.binary_cross_entropy_with_logits(outputs, hot, weight=weight, pos_weight=weight)
        + F.binary_cross_entropy_with_logits(outputs, hot, reduction="none").square().mean()
        + F.binary_cross_entropy(p, hot, weight=weight.expand_as(p), reduction="sum")
        + F.mse_loss(outputs, hot, reduction="sum")
        + F.mse_loss(outputs, p)
        + F.mse_loss(outputs, hot, reduction="none").sqrt().mean()
        + F.kl_div(outputs.log_softmax(1), hot * 0.9 + 0.05, reduction="batchmean")
        + F.kl_div(outputs.log_softmax(1), p.log_softmax(1), log_target=True, reduction="sum")
        + F.poisson_nll_loss(outputs, hot)
        + F.soft_margin_loss(outputs, 2 * hot - 1)
        + F.cosine_embedding_loss(outputs, p, 2 * (targets > 0) - 1)
    )  # fmt: skip


def words():
    return torch.randint(0, 7, (6, 3)), torch.randint(0, 7, (6,))


def plain():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


# name -> (network, data, loss)
OPERATIONS = {
    "matrix_products": (matrix_products, flat, F.cross_entropy),
    "bilinear": (bilinear, flat, F.cross_entropy),
    "transposed": (transposed, images, F.cross_entropy),
    "depthwise": (depthwise, images, F.cross_entropy),
    "reductions": (reductions, flat, F.cross_entropy),
    "lengths_and_choices": (lengths_and_choices, flat, F.cross_entropy),
    "products_of_sets": (products_of_sets, flat, F.cross_entropy),
    "distances": (distances, flat, F.cross_entropy),
    "views": (views, flat, F.cross_entropy),
    "image_views": (image_views, images, F.cross_entropy),
    "pooling": (pooling, images, F.cross_entropy),
    "norms_1d": (norms_of_one_dimension, flat, F.cross_entropy),
    "norms_1d_eval": (lambda: norms_of_one_dimension().eval(), flat, F.cross_entropy),
    "norms_3d": (norms_of_three_dimensions, images, F.cross_entropy),
    "norms_3d_eval": (lambda: norms_of_three_dimensions().eval(), images, F.cross_entropy),
    "other_norms": (other_norms, flat, F.cross_entropy),
    "masked_attention": (masked_attention, tokens, F.cross_entropy),
    "masked_attention_dropout": (lambda: masked_attention(0.3), tokens, F.cross_entropy),
    "lstm": (lambda: cells(nn.LSTM), tokens, F.cross_entropy),
    "gru": (lambda: cells(nn.GRU), tokens, F.cross_entropy),
    "rnn": (lambda: cells(nn.RNN), tokens, F.cross_entropy),
    "embeddings": (embeddings, words, F.cross_entropy),
    "dropouts": (dropouts, images, F.cross_entropy),
    "functions": (functions, flat, F.cross_entropy),
    "cross_entropies": (plain, flat, cross_entropies),
    "entrywise": (plain, flat, entrywise),
}
