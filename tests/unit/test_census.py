import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "census.py"
ROWS = 60
MARITAL_STATUS, WEIGHT, INCOME = 7, 24, 41


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("census", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {column: rng.integers(0, 9, ROWS) for column in range(42)}
    columns[MARITAL_STATUS] = rng.choice(["Never married", "Divorced"], ROWS)
    columns[INCOME] = rng.choice(["50000+.", "- 50000."], ROWS)
    return pd.DataFrame(columns)


def read(script, table, path):
    table.to_csv(path, header=False, index=False)
    return script.read(path)


def test_labels_and_instance_weight_are_no_inputs(script, table, tmp_path):
    before = read(script, table, tmp_path / "before.csv")
    assert before.train.ids.shape == (40, 32)
    assert before.train.numbers.shape == (40, 7)
    order = np.random.default_rng(0).permutation(ROWS)
    labels = table.loc[order[50:], [INCOME, MARITAL_STATUS]] == ["50000+.", "Never married"]
    assert before.test.labels.tolist() == labels.to_numpy().tolist()
    table[MARITAL_STATUS], table[INCOME], table[WEIGHT] = "Widowed", "- 50000.", 7
    after = read(script, table, tmp_path / "after.csv")
    assert not after.train.labels.any()
    for old, new in zip(before[:3], after[:3], strict=True):
        assert torch.equal(old.ids, new.ids)
        assert torch.equal(old.numbers, new.numbers)


def test_test_rows_decide_nothing_about_the_inputs(script, table, tmp_path):
    before = read(script, table, tmp_path / "before.csv")
    held_out = np.random.default_rng(0).permutation(ROWS)[40:]
    table.loc[held_out, [*range(7), *range(8, 24)]] = 99
    after = read(script, table, tmp_path / "after.csv")
    assert torch.equal(before.train.ids, after.train.ids)
    assert torch.equal(before.train.numbers, after.train.numbers)
    assert before.sizes == after.sizes
    assert not after.test.ids[:, :18].any()
