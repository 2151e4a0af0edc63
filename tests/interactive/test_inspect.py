"""``gnewton.inspect``: its tables against a summary, and its figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

import gnewton
from gnewton.errors import InputError
from gnewton.report.inspection_report import read_inspection
from tests.optim.problems import classification, tanh_net

LOADER = [classification(20, seed) for seed in range(3)]


def joint():
    return torch.cat([x for x, _ in LOADER]), torch.cat([y for _, y in LOADER])


def test_its_tables_are_the_summary_along_the_gradient():
    model, (x, y) = tanh_net(), joint()
    gradient = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    summary = gnewton.summarize(model, cross_entropy, x, y, "by_layer", gradient)
    inspection = gnewton.inspect(model, cross_entropy, LOADER, "by_layer")
    assert inspection.hessian.to_numpy() == pytest.approx(summary.hessian.numpy(), rel=1e-9)
    assert list(inspection.hessian.index) == list(inspection.hessian.columns) == list(summary.names)
    assert inspection.groups["gradient"].to_numpy() == pytest.approx(summary.gradient.numpy(), rel=1e-9)
    assert inspection.groups["third"].to_numpy() == pytest.approx(summary.third.numpy(), rel=1e-9)
    eigenvalues = np.linalg.eigvalsh(inspection.scaled_hessian.to_numpy())
    assert inspection.spectrum["scaled"].to_numpy() == pytest.approx(eigenvalues, abs=1e-12)
    alone = (summary.gradient / summary.curvature).where(summary.curvature > 0, torch.nan)
    assert inspection.rates["alone"].to_numpy() == pytest.approx(alone.numpy(), rel=1e-9, nan_ok=True)


def test_fewer_batches_another_direction_and_the_step_of_an_optimizer():
    model, (x, y) = tanh_net(), LOADER[0]
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(cross_entropy(model(x), y), parameters)
    one = gnewton.inspect(model, cross_entropy, LOADER, batches=1)
    summary = gnewton.summarize(model, cross_entropy, x, y, None, gradient)
    assert one.groups["gradient"].to_numpy() == pytest.approx(summary.gradient.numpy(), rel=1e-9)
    signs = {name: g.sign() for (name, _), g in zip(model.named_parameters(), gradient, strict=True)}
    given = gnewton.inspect(model, cross_entropy, LOADER, batches=1, direction=signs)
    adam = gnewton.inspect(model, cross_entropy, LOADER, batches=1, direction="adam")
    # the first step of Adam is the sign of the gradient, up to its eps
    assert adam.groups["curvature"].to_numpy() == pytest.approx(
        given.groups["curvature"].to_numpy(), rel=1e-3
    )
    assert not np.allclose(one.groups["curvature"], given.groups["curvature"])


def test_figures_files_and_html(tmp_path):
    inspection = gnewton.inspect(tanh_net(), cross_entropy, LOADER)
    figures = [
        inspection.heat_map(),
        inspection.plot_rates(),
        inspection.plot_spectrum(),
        inspection.plot_distances(),
    ]
    assert all(figure._repr_png_()[:4] == b"\x89PNG" for figure in figures)
    assert "Sequential on 3 batches, 60 samples" in figures[0].get_suptitle()
    assert inspection._repr_html_().count("data:image/png;base64,") == 3
    assert "0.weight" in repr(inspection)
    written = inspection.save(tmp_path)
    assert {"groups.csv", "hessian.png"} <= {path.name for path in written}
    assert read_inspection(tmp_path).names == list(inspection.groups.index)
    assert gnewton.inspect(tanh_net(), cross_entropy, LOADER, "single").plot_distances() is None


def test_the_loss_along_the_groups_and_its_models(tmp_path):
    inspection = gnewton.inspect(tanh_net(), cross_entropy, LOADER, order=4)
    assert list(inspection.along.columns) == ["group", "rate", "loss", "model_2", "model_3", "model_4"]
    assert inspection.reach["derivative_2"].to_numpy() == pytest.approx(
        inspection.groups["curvature"].to_numpy()
    )
    near = inspection.along[inspection.along["rate"] == 0]
    assert near["model_4"].to_numpy() == pytest.approx(near["loss"].to_numpy(), rel=1e-12)
    assert inspection.plot_along()._repr_png_()[:4] == b"\x89PNG"
    assert inspection._repr_html_().count("data:image/png;base64,") == 4
    assert "up to the end of the grid" in repr(inspection)
    names = {path.name for path in inspection.save(tmp_path)}
    assert {"along.csv", "along_reach.csv", "along.png", "along.svg"} <= names
    pd.testing.assert_frame_equal(read_inspection(tmp_path).along, inspection.along)


def test_the_loss_along_the_groups_must_be_asked_for():
    inspection = gnewton.inspect(tanh_net(), cross_entropy, LOADER[:1])
    for read in (lambda: inspection.along, lambda: inspection.reach, inspection.plot_along):
        with pytest.raises(InputError, match="was not measured; pass order=3 … 8"):
            read()
    with pytest.raises(InputError, match="order=9: must be an integer from 3 to 8"):
        gnewton.inspect(tanh_net(), cross_entropy, LOADER, order=9)


def test_an_empty_loader_is_refused():
    with pytest.raises(InputError, match="loader: it holds no batch"):
        gnewton.inspect(tanh_net(), cross_entropy, [])


@pytest.mark.parametrize("matrix", ["gauss_newton", "fisher"])
def test_the_matrix_is_the_chosen_one_and_named_in_the_figures(matrix):
    model, (x, y) = tanh_net(), LOADER[0]
    gradient = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    inspection = gnewton.inspect(model, cross_entropy, LOADER[:1], "per_channel", matrix=matrix)
    summary = gnewton.summarize(
        model, cross_entropy, x, y, "per_channel", gradient, curvature="gauss_newton", third=True
    )
    scale = np.abs(summary.hessian.numpy()).max()
    gap = np.abs(inspection.hessian.to_numpy() - summary.hessian.numpy()).max() / scale
    assert (gap < 1e-9) == (matrix == "gauss_newton")
    assert inspection.groups["third"].to_numpy() == pytest.approx(summary.third.numpy(), rel=1e-9, abs=1e-12)
    titles = [axis.get_title(loc="left") + axis.get_title() for axis in inspection.heat_map().axes]
    assert any({"gauss_newton": "Gauss–Newton", "fisher": "Fisher"}[matrix] in text for text in titles)
    assert f"H̄ is the {matrix} matrix" in repr(inspection)
