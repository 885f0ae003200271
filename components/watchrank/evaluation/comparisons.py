"""Comparisons of a challenger's task with a reference, and the verdict on each.

Against the champion the challenger fails where it is significantly worse by more than the tolerance: the
whole confidence interval of the difference lies beyond it. So an honest challenger is hardly refused by
chance; on little data only what is clearly worse is, and the interval tells how little there was. Against a
baseline it is the challenger that must show something: the whole interval must lie on the better side.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from watchrank.config import GateSettings
from watchrank.evaluation.bootstrap import Statistic, interval, statistic

METRICS = {"watch_time": ("per_user_loss",), "binary": ("log_loss", "auc"), "regression": ("rmse",)}
"""What a kind of task is judged by; in a segment, by the first."""

SUM_RATIO, CALIBRATION_ERROR = "sum_ratio", "calibration_error"
CHALLENGER, CHAMPION, BOUNDS = "challenger", "champion", "bounds"
WHOLE = "all"

Values = dict[str, float | None]
Direction = Literal["lower", "higher", "within"]
DIRECTIONS: dict[str, Direction] = {"auc": "higher", SUM_RATIO: "within"}
"""Which way a metric is better; the others are better when lower."""


@dataclass(frozen=True, kw_only=True)
class TaskAnswers:
    """A task of the challenger on N impressions."""

    output: str
    kind: Literal["binary", "watch_time", "regression"]
    label: np.ndarray
    """[N], below 0 where it is unknown."""
    challenger: np.ndarray
    """[N]"""
    champion: np.ndarray | None
    """[N]; None when there is nothing of the kind to compare with."""
    baselines: Mapping[str, np.ndarray]
    """[N] by name, the strongest first."""

    @property
    def known(self) -> np.ndarray:
        """Which impressions have the label [N] bool."""
        known: np.ndarray = self.label >= 0
        return known

    @property
    def references(self) -> Mapping[str, np.ndarray]:
        """What the challenger is compared with, by name: the champion or else the baselines."""
        return self.baselines if self.champion is None else {CHAMPION: self.champion}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison and how it ended."""

    name: str
    task: str
    metric: str
    segment: str
    direction: Direction
    against: str
    """The champion, a baseline, or what else was to be met."""
    challenger: float | None = None
    """None where it cannot be measured, as with the other values."""
    reference: float | None = None
    difference: float | None = None
    """The challenger's value less the reference's."""
    low: float | None = None
    """With `high`, the confidence interval of the difference or, within bounds, of the challenger's value."""
    high: float | None = None
    tolerance: float | None = None
    """In units of the metric."""
    passed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is to be judged: a metric of the challenger and, unless it has bounds, of a reference."""

    task: str
    metric: str
    segment: str
    against: str
    statistics: tuple[Statistic, ...]

    def judge(self, values: np.ndarray, drawn: np.ndarray, settings: GateSettings) -> Check:
        """Return the verdict.

        Args:
            values: of the statistics [1 or 2].
            drawn: the same of each resample [R, 1 or 2].
            settings: tolerances and bounds.
        """
        if self.against == BOUNDS:
            return self._within(float(values[0]), *interval(drawn[:, 0], settings.confidence), settings)
        low, high = interval(drawn[:, 0] - drawn[:, 1], settings.confidence)
        challenger, reference = float(values[0]), float(values[1])
        difference = challenger - reference
        check: Values = {"challenger": challenger, "reference": reference, "difference": difference}
        check |= {"low": low, "high": high}
        told = f"{self.metric} {challenger:.4f} against the {self.against}'s {reference:.4f}"
        if math.isnan(difference) or math.isnan(low):
            return self._check(check, self.segment != WHOLE, f"{self.metric} cannot be measured")
        least_worse, most_worse = (-high, -low) if self._direction == "higher" else (low, high)
        tolerance = self._tolerance(reference, settings)
        if tolerance is None:
            passed = most_worse < 0
            told += f": {'better' if passed else 'not better'} beyond chance"
        else:
            passed = least_worse <= tolerance
            told += f": {'not worse' if passed else 'worse'} by more than {tolerance:.4f}"
        check["tolerance"] = tolerance
        return self._check(check, passed, f"{told} (difference {low:+.4f} to {high:+.4f})")

    def _within(self, ratio: float, low: float, high: float, settings: GateSettings) -> Check:
        least, most = settings.min_sum_ratio, settings.max_sum_ratio
        check: Values = {"challenger": ratio, "low": low, "high": high}
        if math.isnan(ratio) or math.isnan(low):
            return self._check(check, False, f"{self.metric} cannot be measured, all labels are 0")
        passed = high >= least and low <= most
        told = f"{self.metric} {ratio:.4f} ({low:.4f} to {high:.4f})"
        bounds = f"the bounds {least:g} to {most:g}"
        return self._check(check, passed, f"{told}, {'within' if passed else 'outside'} {bounds}")

    def _check(self, values: Values, passed: bool, reason: str) -> Check:
        where = self.task if self.segment == WHOLE else f"{self.task}, {self.segment}"
        known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        return Check(
            name=f"{self.task}/{self.segment}/{self.metric}/{self.against}",
            task=self.task,
            metric=self.metric,
            segment=self.segment,
            direction=self._direction,
            against=self.against,
            passed=passed,
            reason=f"{where}: {reason}",
            **known,
        )

    @property
    def _direction(self) -> Direction:
        return DIRECTIONS.get(self.metric, "lower")

    def _tolerance(self, reference: float, settings: GateSettings) -> float | None:
        """Return by how much the metric may be worse; None where it must be better."""
        if self.metric == CALIBRATION_ERROR:
            return settings.segment_tolerance
        if self.segment != WHOLE:
            return settings.segment_tolerance * abs(reference)
        if self.against == CHAMPION:
            share: float = getattr(settings.tolerances, self.metric)
            return share * abs(reference)
        return None


def comparisons(
    task: TaskAnswers, user: np.ndarray, users: int, segments: Mapping[str, np.ndarray]
) -> Iterator[Comparison]:
    """Yield what is to be judged of a task: each metric, the calibration, the segments.

    Args:
        task: its answers.
        user: of each impression, 0 to `users` - 1 [N].
        users: how many users there are.
        segments: the impressions [N] bool of each segment that is large enough to be judged.
    """
    known = task.known

    sides = {CHALLENGER: task.challenger, **task.references}

    @cache
    def measured(metric: str, segment: str, side: str) -> Statistic:
        rows = known if segment == WHOLE else known & segments[segment]
        return statistic(metric, user[rows], users, sides[side][rows], task.label[rows])

    def compare(metric: str, segment: str, against: str) -> Comparison:
        names = [CHALLENGER] if against == BOUNDS else [CHALLENGER, against]
        found = tuple(measured(metric, segment, name) for name in names)
        return Comparison(task=task.output, metric=metric, segment=segment, against=against, statistics=found)

    for metric in METRICS[task.kind]:
        for against in task.references:
            yield compare(metric, WHOLE, against)
    yield compare(SUM_RATIO, WHOLE, BOUNDS)
    strongest = next(iter(task.references))
    for segment in segments:
        for metric in (METRICS[task.kind][0], CALIBRATION_ERROR):
            yield compare(metric, segment, strongest)
