"""``data=tabular``: the tables of scikit-learn, split without overlap, in standard units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import datasets

from gnewton.data.dataset_options import DATA, TABLES
from gnewton.errors import InputError
from tests.recipes import recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_rows_are_those_of_the_table_each_once(table):
    data = recipe(DATA, "digits", "tabular", f"data.table={table}", "data.normalise=false").build(
        CPU, torch.float64, 0
    )
    stored = getattr(datasets, f"load_{table}")()
    assert len(stored.data) == TABLES[table]
    parts = [next(iter(part.in_order(1000))) for part in (data.train, data.validation, data.test)]
    assert [len(x) for x, _ in parts] == [TABLES[table] - 72, 36, 36]
    rows = torch.cat([x for x, _ in parts]).numpy()
    targets = torch.cat([y for _, y in parts]).numpy().reshape(-1)
    orders = np.lexsort(rows.T), np.lexsort(stored.data.T)
    assert rows[orders[0]] == pytest.approx(stored.data[orders[1]])
    if table == "diabetes":
        assert np.corrcoef(targets[orders[0]], stored.target[orders[1]])[0, 1] == pytest.approx(1.0)
        beside = torch.cat([y for _, y in parts[:2]])
        assert float(beside.mean()) == pytest.approx(0.0, abs=1e-12)
        assert float(beside.std(unbiased=False)) == pytest.approx(1.0)
    else:
        assert targets[orders[0]].tolist() == stored.target[orders[1]].tolist()


def test_features_are_in_units_of_the_training_part():
    data = recipe(DATA, "digits", "tabular").build(CPU, torch.float64, 0)
    x, _ = next(iter(data.train.in_order(1000)))
    assert x.mean(0).numpy() == pytest.approx(np.zeros(30), abs=1e-9)
    assert x.std(0, unbiased=False).numpy() == pytest.approx(np.ones(30))


def test_too_many_held_out_are_refused():
    with pytest.raises(InputError, match="test=150: must be < 178 together with validation=36"):
        recipe(DATA, "digits", "tabular", "data.table=wine", "data.test=150")


def test_it_trains(run):
    report = run(["data=tabular", "data.table=wine", "model.widths=[8]", "trainer.epochs=10"])
    assert report.outcome.metrics["test_accuracy"] > 0.9
