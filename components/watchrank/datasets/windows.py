"""Splits by time: a model is trained on the past and judged on what came after."""

from collections.abc import Sequence
from datetime import date

from watchrank.config import SplitSettings
from watchrank.errors import InputError

SPLITS = ("train", "validation", "test")


def split_days(days: Sequence[date], settings: SplitSettings) -> dict[str, list[date]]:
    """Give the last days of the log to test, those before to validation and the rest to train.

    Raises:
        InputError: no day is left to train on.
    """
    ordered = sorted(days)
    held_out = settings.test_days + settings.validation_days
    if len(ordered) <= held_out:
        raise InputError(
            f"The events have {len(ordered)} days, but split.test_days and split.validation_days take "
            f"{held_out}; ingest more days or lower the settings."
        )
    first_test = len(ordered) - settings.test_days
    first_held_out = len(ordered) - held_out
    return {
        "train": ordered[:first_held_out],
        "validation": ordered[first_held_out:first_test],
        "test": ordered[first_test:],
    }
