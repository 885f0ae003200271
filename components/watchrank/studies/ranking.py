"""The studies of the watch-time ranker: what the paper reports or leaves open, as tables and plots."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from watchrank.config import HIDDEN_PRESETS
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.evaluation.evaluate import score, true_values
from watchrank.evaluation.page import BLUE, GREEN, GREY, ORANGE, svg
from watchrank.studies.runs import Estimate, Overrides, Run, Runs, Study


def hidden_layers(runs: Runs) -> Study:
    """Per-user loss by hidden layers: table 1 of Covington et al. 2016."""
    variants: Overrides = {name: [f"ranking.hidden={name}"] for name in HIDDEN_PRESETS}
    return _compare(
        runs,
        variants,
        "Hidden layers and per-user loss",
        "The seven variants of Covington et al. 2016, table 1.",
    )


def inputs(runs: Runs) -> Study:
    """What the powers, the normalisation and the weights by watch time are worth."""
    variants: Overrides = {
        "default": [],
        "without powers": ["ranking.powers=false"],
        "without normalisation": ["ranking.normalisation=none"],
        "unweighted": ["training.objective=logistic"],
        "all user features": ["ranking.exclude=[]"],
    }
    return _compare(
        runs,
        variants,
        "What the inputs and the weights are worth",
        "One thing changed at a time: the powers of the normalised features, their normalisation, the "
        "weight of a click by its watch time, and the user features that are left out by default.",
    )


def _compare(runs: Runs, variants: Overrides, title: str, lead: str) -> Study:
    """Compare variants by their metrics on the test window."""
    test = _test(runs)
    scores = {
        name: [score(test, run.predictions) for run in found] for name, found in runs.of(variants).items()
    }
    losses = {name: Estimate.of(s["per_user_loss"] for s in found) for name, found in scores.items()}
    rows = [
        {
            "variant": name,
            "per-user loss ↓": f"{losses[name]:.4f}",
            "XAUC ↑": f"{Estimate.of(s['xauc'] for s in found):.4f}",
            "RMSE, s ↓": f"{Estimate.of(s['rmse'] for s in found):.2f}",
            "sum ratio → 1": f"{Estimate.of(s['sum_ratio'] for s in found):.3f}",
        }
        for name, found in scores.items()
    ]
    note = runs.note
    plot = svg("Per-user loss", lambda axes: _intervals(axes, losses), width=7)
    return Study(title, lead, rows, note, [plot])


def objective(runs: Runs) -> Study:
    """Calibration of `youtube` beside `exact`, by surface: where clicks are rare and where they are not."""
    test = _test(runs)
    actual, overstated = _expected(runs, test)
    variants: Overrides = {
        f"{name}{' + calibration' if calibrated else ''}": [
            f"training.objective={name}",
            f"training.calibrate={str(calibrated).lower()}",
        ]
        for calibrated in (False, True)
        for name in ("exact", "youtube")
    }
    found = runs.of(variants)
    clicked = np.asarray(test.impressions["clicked"])
    rows, ratios = [], {}
    for surface, of_surface in _surfaces(runs, test).items():
        total = actual[of_surface].sum()
        ratios[surface] = {
            name: Estimate.of(run.predictions[of_surface].sum() / total for run in of_variant)
            for name, of_variant in found.items()
        }
        row = {
            "surface": surface,
            "impressions": f"{of_surface.sum():,}",
            "click rate": f"{clicked[of_surface].mean():.3f}",
        }
        if overstated is not None:
            row["E[T]/(1-P) / E[T]"] = f"{overstated[of_surface].sum() / total:.3f}"
        rows.append(row | {name: f"{ratio:.3f}" for name, ratio in ratios[surface].items()})
    against = "the true E[T]" if overstated is not None else "the observed watch time"
    return Study(
        "The paper's objective and the exact one: calibration by click rate",
        f"Sum of exp(logit) over the sum of {against}, by surface; 1 is right.",
        rows,
        runs.note,
        [svg("Sum ratio by surface", lambda axes: _ratios(axes, ratios), width=7)],
    )


def weighting(runs: Runs) -> Study:
    """Weighting by the gradient beside weighting by resampling: bias, spread and cost."""
    test = _test(runs)
    actual, overstated = _expected(runs, test)
    variants: Overrides = {
        name: [f"training.weighting={name}", "training.calibrate=false"] for name in ("gradient", "resample")
    }
    rows, errors = [], {}
    times = _times(runs.of(variants))
    for name, of_variant in runs.of(variants).items():
        logs = np.log([run.predictions for run in of_variant])  # [seeds, N]
        ratio = Estimate.of(run.predictions.sum() / actual.sum() for run in of_variant)
        row = {"weighting": name, "sum ratio → 1": f"{ratio:.3f}"}
        if overstated is not None:
            off = logs.mean(0) - np.log(actual)
            errors[name] = off
            row["mean of ln(predicted / true)"] = f"{off.mean():+.3f}"
            row["bias, RMS of its mean over seeds"] = f"{np.sqrt(np.mean(off**2)):.3f}"
        row["spread over seeds, SD of ln(predicted)"] = f"{np.sqrt(logs.var(0, ddof=1).mean()):.3f}"
        row["per-user loss ↓"] = f"{Estimate.of(_loss(test, run) for run in of_variant):.4f}"
        row["training time"] = f"× {times[name]:.2f}"
        rows.append(row)
    plots = (
        [svg("ln(predicted / true), mean over seeds", lambda axes: _histograms(axes, errors))]
        if errors
        else []
    )
    return Study(
        "Weighting by the gradient or by resampling",
        "A click weighs its watch time: in the gradient, or by being drawn so much more often.",
        rows,
        runs.note + " No calibration step. Bias and spread: of ln exp(logit), over the test window.",
        plots,
    )


STUDIES: dict[str, Callable[[Runs], Study]] = {
    "hidden": hidden_layers,
    "inputs": inputs,
    "objective": objective,
    "weighting": weighting,
}


# -- What the studies measure ---------------------------------------------------------------------------


def _test(runs: Runs) -> Split:
    return RankingDataset.open(runs.place.dataset).split("test")


def _expected(runs: Runs, test: Split) -> tuple[np.ndarray, np.ndarray | None]:
    """Return E[T] [N] and E[T] / (1 - P) [N] where a simulator knows them, else the observed T and None."""
    if not runs.place.truth.is_dir():
        return np.asarray(test.impressions["watch_seconds"], dtype=np.float64), None
    true = true_values(test, runs.place.truth)
    seconds = true["expected_watch_seconds"].to_numpy()
    return seconds, seconds / (1 - true["click_probability"].to_numpy())


def _surfaces(runs: Runs, test: Split) -> dict[str, np.ndarray]:
    """Return which impressions [N] are of each surface that has at least 1 % of them, and of all."""
    names = RankingDataset.open(runs.place.dataset).manifest["surfaces"]
    surface = test.requests["surface"][test.impressions["request"]]
    found = {name: surface == number for name, number in sorted(names.items())}
    large = {name: rows for name, rows in found.items() if rows.mean() >= 0.01}
    return large | {"all": np.ones(len(test), dtype=bool)}


def _loss(test: Split, run: Run) -> float:
    return score(test, run.predictions)["per_user_loss"]


def _times(variants: dict[str, list[Run]]) -> dict[str, float]:
    """Return the median training time of an impression, as a multiple of the first variant's."""
    rates = {
        name: np.median([line["impressions_a_second"] for run in runs for line in run.curve])
        for name, runs in variants.items()
    }
    first = next(iter(rates.values()))
    return {name: float(first / rate) for name, rate in rates.items()}


# -- Plots ----------------------------------------------------------------------------------------------


def _intervals(axes: Axes, estimates: dict[str, Estimate]) -> None:
    means = [estimate.mean for estimate in estimates.values()]
    widths = [estimate.half_width for estimate in estimates.values()]
    axes.errorbar(list(estimates), means, yerr=widths, fmt="o", color=BLUE, capsize=4)
    axes.tick_params(axis="x", labelrotation=20)
    axes.set(ylabel="per-user loss")


def _ratios(axes: Axes, ratios: dict[str, dict[str, Estimate]]) -> None:
    variants = list(next(iter(ratios.values())))
    width = 0.8 / len(variants)
    colours = (BLUE, ORANGE, GREEN, GREY)
    for place, (name, colour) in enumerate(zip(variants, colours, strict=True)):
        at = np.arange(len(ratios)) + (place - (len(variants) - 1) / 2) * width
        means = [of_surface[name].mean for of_surface in ratios.values()]
        errors = [of_surface[name].half_width for of_surface in ratios.values()]
        axes.bar(at, means, width, yerr=errors, color=colour, label=name, error_kw={"linewidth": 1})
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(np.arange(len(ratios)), list(ratios))
    axes.set(ylabel="sum ratio")
    axes.legend(frameon=False)


def _histograms(axes: Axes, errors: dict[str, np.ndarray]) -> None:
    low, high = np.quantile(np.concatenate(list(errors.values())), [0.005, 0.995])
    bins = np.linspace(low, high, 60).tolist()
    for (name, values), colour in zip(errors.items(), (BLUE, ORANGE), strict=True):
        axes.hist(values, bins=bins, histtype="step", color=colour, density=True, label=name)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="ln(predicted / true)", ylabel="density")
    axes.legend(frameon=False)
