from datetime import date, timedelta

import pytest

from watchrank.config import SplitSettings
from watchrank.datasets.windows import split_days
from watchrank.errors import InputError

DAYS = [date(2026, 1, 1) + timedelta(days=day) for day in (0, 1, 3, 4, 9)]


def test_the_last_days_test_those_before_validate_the_rest_train():
    windows = split_days(DAYS[::-1], SplitSettings(test_days=2, validation_days=1))
    assert windows == {"train": DAYS[:2], "validation": DAYS[2:3], "test": DAYS[3:]}


def test_validation_may_be_empty():
    windows = split_days(DAYS, SplitSettings(test_days=4, validation_days=0))
    assert windows == {"train": DAYS[:1], "validation": [], "test": DAYS[1:]}


@pytest.mark.parametrize("days", [0, 3])
def test_too_few_days_to_train_on(days):
    with pytest.raises(InputError, match=f"have {days} days, but .* take 3; ingest more days"):
        split_days(DAYS[:days], SplitSettings(test_days=2, validation_days=1))
