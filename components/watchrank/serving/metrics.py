"""What the HTTP service counts, in a registry of its own, in Prometheus' format.

Feast, once imported, makes prometheus_client keep its counters in files that all registries of a process
share. So the counters here are plain numbers of this process; they belong to the event loop's thread.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from watchrank.serving.question import Recommendation
from watchrank.serving.request_log import RequestLog

OUTCOMES = {
    200: "ok",
    401: "unauthorised",
    404: "not_found",
    405: "not_found",
    408: "too_slow",
    413: "too_large",
    414: "too_large",
    415: "bad_input",
    422: "bad_input",
    429: "too_many",
    500: "failed",
    503: "unavailable",
}
"""The outcome of a request by its HTTP status."""

UNCOUNTED = ("/health", "/metrics")

_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_WATCH_SECONDS = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 10_800.0)
_TENTHS = tuple(tenth / 10 for tenth in range(11))


class Counts(Collector):
    """A counter for each value of a label."""

    def __init__(self, name: str, description: str, label: str) -> None:
        """Make the counter; Prometheus sees `name` with `_total` behind it."""
        self._name, self._description, self._label = name, description, label
        self._counts: dict[str, int] = {}

    def add(self, value: object) -> None:
        """Count one for a value of the label."""
        self._counts[str(value)] = self._counts.get(str(value), 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted."""
        family = CounterMetricFamily(self._name, self._description, labels=[self._label])
        for value, count in self._counts.items():
            family.add_metric([value], count)
        yield family


class Distribution(Collector):
    """A histogram, or one for each value of a label."""

    def __init__(
        self, name: str, description: str, bounds: Sequence[float], label: str | None = None
    ) -> None:
        """Make the histogram with these upper bounds of its buckets, and one above them."""
        self._name, self._description, self._bounds = name, description, bounds
        self._labels = [label] if label else []
        self._counts: dict[str, np.ndarray] = {}
        self._sums: dict[str, float] = {}

    def observe(self, values: float | Sequence[float], label: str = "") -> None:
        """Count one value or several."""
        several = np.atleast_1d(values)
        buckets = np.searchsorted(self._bounds, several)
        counts = np.bincount(buckets, minlength=len(self._bounds) + 1)
        self._counts[label] = self._counts.get(label, 0) + counts
        self._sums[label] = self._sums.get(label, 0.0) + float(several.sum())

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted."""
        family = HistogramMetricFamily(self._name, self._description, labels=self._labels)
        names = [*map(str, self._bounds), "+Inf"]
        for label, counts in self._counts.items():
            buckets = list(zip(names, np.cumsum(counts).tolist(), strict=True))
            family.add_metric([label] if self._labels else [], buckets, self._sums[label])
        yield family


class Metrics:
    """The counters of one process."""

    def __init__(self, log: RequestLog | None = None) -> None:
        """Make them, all at 0; `log` tells how many rows it has lost."""
        self.requests = Counts("watchrank_requests", "requests by outcome", "outcome")
        self.answers = Counts("watchrank_answers", "users answered, by release", "release")
        self.fallbacks = Counts(
            "watchrank_fallbacks", "users answered without their features, or without Triton", "fallback"
        )
        self.failures = Counts(
            "watchrank_failures", "calls of a stage that failed or were left out after a failure", "stage"
        )
        self.stage_seconds = Distribution(
            "watchrank_stage_seconds", "seconds that a stage of a request took", _STAGE_SECONDS, "stage"
        )
        self.predicted_seconds = Distribution(
            "watchrank_predicted_seconds", "expected watch seconds of the videos answered", _WATCH_SECONDS
        )
        self.challenger_requests = Counts(
            "watchrank_challenger_requests",
            "requests to the challenger: answered, failed, or skipped under load",
            "outcome",
        )
        self.challenger_seconds = Distribution(
            "watchrank_challenger_seconds", "seconds until the challenger answered", _STAGE_SECONDS
        )
        self.challenger_equal = Distribution(
            "watchrank_challenger_equal_share",
            "share of the champion's videos that the challenger answers too, a user",
            _TENTHS,
        )
        self.registry = CollectorRegistry()
        counters = [each for each in vars(self).values() if isinstance(each, Counts | Distribution)]
        for each in [*counters, *([DroppedRows(log)] if log else [])]:
            self.registry.register(each)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Count one stage of a request."""
        self.stage_seconds.observe(seconds, stage)

    def count_answers(self, answers: Sequence[Recommendation]) -> None:
        """Count the answers of a request."""
        for answer in answers:
            self.answers.add(answer.release)
            if answer.fallback:
                self.fallbacks.add(answer.fallback)
            self.predicted_seconds.observe(answer.expected_watch_seconds)


class DroppedRows(Collector):
    """The rows that a request log has lost."""

    def __init__(self, log: RequestLog) -> None:
        """Read from `log`."""
        self._log = log

    def collect(self) -> Iterator[Metric]:
        """Yield how many they are."""
        yield CounterMetricFamily(
            "watchrank_request_log_dropped_rows", "rows that the log lost", self._log.dropped
        )


class CountOutcomes:
    """ASGI middleware that counts each request by its outcome, those of `UNCOUNTED` apart."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap `app`."""
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await self._app(scope, receive, send)
            return
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.requests.add(OUTCOMES.get(status, "other"))
