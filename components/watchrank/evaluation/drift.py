"""Drift: what the ranker is given now, beside what it was trained on, and whether its promises hold."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from watchrank.config import DriftSettings
from watchrank.datasets.ranking import Split
from watchrank.errors import InputError
from watchrank.evaluation.drift_bins import TOP_IDS, Comparison, compare_ids, compare_numbers
from watchrank.evaluation.drift_samples import Sample, log_sample, split_sample
from watchrank.evaluation.page import BLUE, ORANGE, svg, write_page
from watchrank.evaluation.realised import overall, realised_watch_time
from watchrank.schema import PAD_ID
from watchrank.storage import atomic_path, write_json

PLOTTED = 6
"""Distributions that the page shows: those with the largest index, each once."""


def drift_report(
    reference: Split,
    current: Split | Path,
    output: Path,
    events: Path | None = None,
    settings: DriftSettings = DriftSettings(),
) -> dict[str, Any]:
    """Compare the features of two windows and write `drift.json` and `drift.html`.

    Args:
        reference: what the model was trained on: `RankingDataset.open(path).split("train")`.
        current: another split, of this dataset or another; or the folder of a `RequestLog`, which holds
            request and user features only.
        output: folder for the results; replaced as a whole.
        events: folder of the events that followed; with it, what a request log predicted is held against
            what was watched.
        settings: see `DriftSettings`.

    Returns:
        What `drift.json` holds: `rows`, the requests drawn; `features`, the largest index first, each with
        `psi`, `noise` (the index that chance alone makes), `reading`, rows, means (numbers), missing shares
        and the shares by bin; and `realised`, by day and overall, or None.

    Raises:
        InputError: a side has no rows, or `events` come without a request log.
    """
    if events is not None and not isinstance(current, Path):
        raise InputError("Only a request log has predictions to hold against events; give its folder.")
    rows, seed = settings.sample_rows, settings.seed
    before = split_sample(reference, rows, seed)
    now = log_sample(current, rows, seed) if isinstance(current, Path) else split_sample(current, rows, seed)
    if not len(before["surface"]) or not len(now["surface"]):
        raise InputError("One side of the drift report has no rows; give windows with impressions.")
    results: dict[str, Any] = {
        "settings": settings.model_dump(),
        "rows": {"reference": len(before["surface"]), "current": len(now["surface"])},
        "features": _features(before, now, settings),
        "realised": None if events is None else _realised(current, events, settings.window_seconds),
    }
    with atomic_path(output) as fresh:
        fresh.mkdir()
        write_json(fresh / "drift.json", results)
        plots = [_plot(feature) for feature in _distinct(results["features"])[:PLOTTED]]
        write_page(fresh / "drift.html", "drift.html.j2", plots=plots, top_ids=TOP_IDS, **results)
    return results


def reading(psi: float, noise: float, settings: DriftSettings) -> str:
    """Return the usual reading of a population stability index, where chance alone would not give it."""
    if noise >= settings.moderate_psi:
        return "too few rows"
    if psi < settings.moderate_psi:
        return "stable"
    return "shifted" if psi < settings.major_psi else "changed"


def _features(before: Sample, now: Sample, settings: DriftSettings) -> list[dict[str, Any]]:
    compared = [_feature(name, before[name], now[name], settings) for name in before if name in now]
    known = [row for row in compared if row["reference_missing"] < 1 or row["current_missing"] < 1]
    return sorted(known, key=lambda row: -row["psi"])


def _feature(
    name: str, reference: np.ndarray, current: np.ndarray, settings: DriftSettings
) -> dict[str, Any]:
    compare = compare_numbers if reference.dtype.kind == "f" else compare_ids
    found: Comparison = compare(reference, current)
    return {
        "name": name,
        "psi": found.psi,
        "noise": found.noise,
        "reading": reading(found.psi, found.noise, settings),
        "bins": found.labels,
        **_side("reference", reference, found.reference),
        **_side("current", current, found.current),
    }


def _side(side: str, values: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    number = values.dtype.kind == "f"
    missing = np.isnan(values) if number else values == PAD_ID
    mean = float(values[~missing].mean()) if number and not missing.all() else None
    return {
        f"{side}_rows": len(values),
        f"{side}_mean": mean,
        f"{side}_missing": float(missing.mean()),
        f"{side}_shares": (counts / len(values)).tolist(),
    }


def _realised(log: Split | Path, events: Path, window_seconds: int) -> dict[str, Any]:
    assert isinstance(log, Path)
    days = realised_watch_time(log, events, window_seconds)
    return {"overall": overall(days), "days": days}


def _distinct(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what is distributed as a feature before: the lists of one history are of one length."""
    first: dict[str, dict[str, Any]] = {}
    for feature in features:
        first.setdefault(str(feature["current_shares"]), feature)
    return list(first.values())


def _plot(feature: dict[str, Any]) -> str:
    pairs = zip(feature["reference_shares"], feature["current_shares"], strict=True)
    used = [place for place, pair in enumerate(pairs) if any(pair)]

    def draw(axes: Axes) -> None:
        for side, colour, shift in (("reference", BLUE, -0.2), ("current", ORANGE, 0.2)):
            shares = [feature[f"{side}_shares"][place] for place in used]
            axes.bar(np.arange(len(used)) + shift, shares, width=0.4, color=colour, label=side)
        labels = [_short(feature["bins"][place]) for place in used]
        axes.set_xticks(range(len(used)), labels, rotation=60, ha="right", fontsize=8)
        axes.set_ylabel("share of the rows")
        axes.legend(frameon=False)

    return svg(f"{feature['name']}: {feature['psi']:.3f}", draw)


def _short(label: str) -> str:
    """Cut a text's id, 18 digits, to its end."""
    return label if len(label) <= 12 else f"…{label[-5:]}"
