"""The report of a ranker: its metrics, calibration and plots."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from watchrank.evaluation.page import BLUE, GREEN, GREY, ORANGE, svg, write_page
from watchrank.training.fit import Epoch


def write_report(
    target: Path,
    results: dict[str, Any],
    curve: list[Epoch],
    watch_seconds: np.ndarray,
    predicted: np.ndarray,
) -> None:
    """Write the page.

    Args:
        target: the HTML file.
        results: what `evaluate_ranking` returns.
        curve: the learning curve, one line an epoch.
        watch_seconds: observed seconds of the test impressions [N].
        predicted: expected seconds of the same [N].
    """
    truth = results.get("truth", {})
    deciles = results["calibration"]["decile"]
    plots = [
        svg("Calibration by decile", lambda axes: _calibration(axes, deciles, truth.get("deciles"))),
        svg("Learning curve", lambda axes: _learning_curve(axes, curve)),
        svg("Distribution", lambda axes: _distribution(axes, np.asarray(watch_seconds), predicted)),
    ]
    tables = {f"Calibration by {kind}": rows for kind, rows in results["calibration"].items()}
    if truth:
        title = f"Against the true expected watch time, by decile (overall ratio {truth['sum_ratio']:.3f})"
        tables = {title: truth["deciles"], **tables}
    write_page(
        target,
        "report.html.j2",
        window=results["window"],
        kind=results["model"],
        models=results["models"],
        tasks=results.get("tasks"),
        experts=results.get("experts"),
        plots=plots,
        tables=tables,
    )


def _calibration(axes: Axes, deciles: list[dict[str, Any]], true: list[dict[str, Any]] | None) -> None:
    predicted = [row["predicted"] for row in deciles]
    limits = [min(predicted), max(predicted)]
    axes.plot(limits, limits, color=GREY, linestyle="--", linewidth=1, label="right")
    axes.plot(predicted, [row["actual"] for row in deciles], "o-", color=BLUE, label="observed mean")
    if true:
        axes.plot(
            [row["predicted"] for row in true],
            [row["actual"] for row in true],
            "x",
            color=GREEN,
            label="true mean",
        )
    axes.set(xlabel="predicted, s", ylabel="seconds", xscale="log", yscale="log")
    ticks = (1, 2, 5) if limits[1] < 1_000 * limits[0] else (1,)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(frameon=False)


def _learning_curve(axes: Axes, curve: list[Epoch]) -> None:
    epochs = [line.epoch + 1 for line in curve]
    axes.plot(epochs, [line.train_loss for line in curve], "o-", color=BLUE, label="training")
    checked = [line.validation_loss for line in curve if line.validation_loss is not None]
    if checked:
        axes.plot(epochs, checked, "o-", color=ORANGE, label="validation")
    axes.set(xlabel="epoch", ylabel="loss an impression")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def _distribution(axes: Axes, watch_seconds: np.ndarray, predicted: np.ndarray) -> None:
    watched = watch_seconds[watch_seconds > 0]
    top = max(float(predicted.max()), float(watched.max(initial=1.0)))
    bins = np.geomspace(max(float(predicted.min()), 0.01), top, 50).tolist()
    axes.hist(predicted, bins=bins, color=BLUE, alpha=0.6, density=True, label="predicted, all")
    axes.hist(watched, bins=bins, color=ORANGE, alpha=0.5, density=True, label="observed, watched only")
    axes.set(xlabel="seconds", ylabel="density", xscale="log", yscale="log")
    axes.legend(frameon=False)
