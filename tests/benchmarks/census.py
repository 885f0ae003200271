"""Census-Income (KDD), a sample: two labels, and inputs that hold neither."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

DATA = Path(__file__).parents[3] / "shared/data/census_income_kdd/census-income.sample.csv.gz"
MARITAL_STATUS, INSTANCE_WEIGHT, INCOME = 7, 24, 41
NUMBERS = [0, 5, 16, 17, 18, 30, 39]
"""Age, wage per hour, capital gains and losses, dividends, persons worked for the employer, weeks worked."""


class Split(NamedTuple):
    """Ids of the categories [N, C], standardised numbers [N, D], labels 0 or 1 [N, T]."""

    ids: Tensor
    numbers: Tensor
    labels: Tensor


class Census(NamedTuple):
    """The splits, and how many ids each column of categories has."""

    train: Split
    validation: Split
    test: Split
    sizes: list[int]


def read(path: Path) -> Census:
    """Read the file and split it; a category that no training row has is id 0 of its column."""
    table = pd.read_csv(path, header=None, skipinitialspace=True, keep_default_na=False)
    labels = np.column_stack([table[INCOME] == "50000+.", table[MARITAL_STATUS] == "Never married"])
    table = table.drop(columns=[MARITAL_STATUS, INSTANCE_WEIGHT, INCOME])
    order = np.random.default_rng(0).permutation(len(table))
    parts = np.split(order, [len(order) * 4 // 6, len(order) * 5 // 6])
    categories, numbers = table.drop(columns=NUMBERS), table[NUMBERS].to_numpy(np.float32)
    known = {name: sorted(categories[name].iloc[parts[0]].unique()) for name in categories}
    ids = [pd.Categorical(categories[name], categories=known[name]).codes + 1 for name in categories]
    numbers = (numbers - numbers[parts[0]].mean(0)) / numbers[parts[0]].std(0)
    whole = np.column_stack(ids).astype(np.int64), numbers, labels.astype(np.float32)
    splits = [Split(*(torch.from_numpy(values[part]) for values in whole)) for part in parts]
    return Census(*splits, [len(values) + 1 for values in known.values()])
