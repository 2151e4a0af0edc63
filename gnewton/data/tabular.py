"""The tables that come with scikit-learn, as training, validation and test parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gnewton.data.arrays import Arrays, check
from gnewton.data.assemble import assemble, divide

if TYPE_CHECKING:
    import torch

    from gnewton.data.dataset_options import Tabular
    from gnewton.data.splits import DataSet


def build_tabular(options: Tabular, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """One of the tables, the test part held out first.

    Targets of a regression are centred and divided by their deviation over the samples beside the test part.
    """
    from sklearn import datasets

    stored = getattr(datasets, f"load_{options.table}")()
    features, targets = stored.data.astype(np.float64), stored.target
    rest, test = divide(len(features), options.test, None, options.split_seed)
    if targets.dtype.kind == "f":
        targets = (targets - targets[rest].mean()) / targets[rest].std()
    arrays = Arrays(features[rest], targets[rest], features[test], targets[test])
    check(arrays, f"data.table={options.table}")
    return assemble(options, arrays, device=device, dtype=dtype, seed=seed)
