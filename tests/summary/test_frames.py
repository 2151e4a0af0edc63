"""A summary as a table: the names of the groups, in frame, text and HTML."""

from __future__ import annotations

import re

import torch
from torch.nn.functional import cross_entropy

from gnewton.summary import Summary, summarize
from tests.optim.problems import classification, tanh_net


def test_the_groups_have_their_names_in_table_text_and_html():
    model, (x, y) = tanh_net(), classification(20)
    direction = [torch.ones_like(p) for p in model.parameters()]
    summary = summarize(model, cross_entropy, x, y, "by_layer", direction)
    table = summary.to_frame()
    assert list(table.index) == ["0", "2", "4"] == list(summary.names)
    assert table["curvature"].tolist() == summary.hessian.diagonal().tolist()
    assert table["third_noise"].tolist() == summary.third_noise.tolist()
    assert all(isinstance(part, torch.Tensor) for part in summary.parts().values())
    plain = summarize(model, cross_entropy, x, y, "by_layer", direction, diagonal=True, third=False)
    assert plain.to_frame()["curvature_noise"].tolist() == plain.hessian_noise.tolist()
    assert "third" not in plain.to_frame()
    assert f"loss {float(summary.loss):.6g}" in repr(summary)
    assert re.search(r"^2 +-?\d", repr(summary), re.M)
    assert "<th>gradient</th>" in summary._repr_html_()
    assert list(Summary.of(summary.parts()).to_frame().index) == [0, 1, 2]  # without names: numbers
