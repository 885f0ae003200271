from datetime import UTC, date, datetime, timedelta

import pytest

from watchrank.config import SplitSettings
from watchrank.datasets.windows import split_days, window
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


WEEK = [date(2026, 1, 1) + timedelta(days=day) for day in range(7)]


def test_the_window_ends_where_it_is_told_to_and_trains_on_as_many_days_as_it_is_told_to():
    split = SplitSettings(until=WEEK[5], train_days=2, test_days=1, validation_days=1)
    assert split_days(WEEK, split) == {"train": WEEK[2:4], "validation": WEEK[4:5], "test": WEEK[5:6]}
    midnights = [datetime(2026, 1, day, tzinfo=UTC) for day in (3, 7)]
    assert window(WEEK, split) == tuple(midnights)
    assert window(WEEK, split.model_copy(update={"train_days": None})) == (None, midnights[1])
    rolled = split.model_copy(update={"until": None})
    assert split_days(WEEK, rolled)["train"] == WEEK[3:5]
    assert window(WEEK, rolled) == (midnights[0] + timedelta(days=1), None)
    assert window(WEEK, SplitSettings()) == (None, None)


@pytest.mark.parametrize(
    ("setting", "missing"),
    [
        ({"until": date(2026, 1, 8)}, "2026-01-06"),
        ({"until": date(2026, 1, 4)}, "2026-01-03"),
        ({"until": date(2026, 1, 10), "train_days": 2}, "2026-01-06"),
        ({"until": date(2026, 1, 2), "train_days": 2}, "2025-12-29"),
    ],
)
def test_a_day_that_the_window_counts_and_the_log_lacks_is_named(setting, missing):
    split = SplitSettings(test_days=1, validation_days=2, **setting)
    with pytest.raises(InputError, match=f"have no {missing}, but .* every day from .*; ingest that day"):
        split_days([*DAYS[:2], *DAYS[2:4], *(date(2026, 1, day) for day in (7, 9, 10))], split)


def test_a_window_without_days_to_train_on():
    with pytest.raises(InputError, match="have 2 days up to 2026-01-02, but"):
        split_days(WEEK, SplitSettings(until=WEEK[1], test_days=1, validation_days=1))
