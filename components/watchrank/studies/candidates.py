"""The studies of candidate generation: figures 4 and 6 of Covington et al. 2016, and tied embeddings."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from watchrank.config import Config
from watchrank.datasets.candidates import CandidateDataset
from watchrank.errors import InputError
from watchrank.evaluation.candidates import softmax_scorer
from watchrank.evaluation.page import BLUE, GREEN, GREY, ORANGE, svg
from watchrank.evaluation.retrieval import evaluate_retrieval
from watchrank.models.candidate_generation import ID_DOMAINS, NEEDED, NUMBERS
from watchrank.storage import write_json
from watchrank.studies.example_age import Timeline, by_day, probabilities
from watchrank.studies.runs import Estimate, Overrides, Run, Runs, Study, Task
from watchrank.training.candidate_generation import fit_candidates
from watchrank.training.fit import run_key
from watchrank.training.softmax import SoftmaxLoss
from watchrank.workspace import Workspace

DEPTHS = range(5)
OTHERS = {*ID_DOMAINS.values(), *NUMBERS} - NEEDED
"""The features that a tower can do without."""

Curve = dict[int, Estimate]
"""The probability of a video by whole days since its upload."""


def depth(runs: Runs) -> Study:
    """MAP by depth and features: figure 6 of Covington et al. 2016."""
    sets = _feature_sets(runs)
    variants: Overrides = {
        f"{name}, {level}": [f"candidates.depth={level}", _excluding(absent)]
        for name, absent in sets.items()
        for level in DEPTHS
    }
    found = runs.of(variants, CANDIDATES)
    scores = {
        metric: {name: [_estimate(found[f"{name}, {level}"], metric) for level in DEPTHS] for name in sets}
        for metric in ("map", "recall@100")
    }
    rows = [
        {
            "features": name,
            "hidden layers": str(level),
            "MAP ↑": f"{scores['map'][name][level]:.4f}",
            "recall@100 ↑": f"{scores['recall@100'][name][level]:.4f}",
        }
        for name in sets
        for level in DEPTHS
    ]
    return Study(
        "Candidate generation by depth and features",
        "Each feature set has all of those above it. 0 layers are a linear tower; each further one is twice "
        "as wide as the one after it. The paper finds that both, features and depth, help.",
        rows,
        f"{runs.note} On each user's last watch, over the whole catalogue.",
        [
            svg("MAP", lambda axes: _by_depth(axes, scores["map"], "MAP"), width=5.4),
            svg("Recall@100", lambda axes: _by_depth(axes, scores["recall@100"], "recall@100"), width=5.4),
        ],
    )


def example_age(runs: Runs) -> Study:
    """Popularity over the days since upload, with and without the example age: figure 4 of the paper.

    What exactly is plotted is said in `studies.example_age`.

    Raises:
        InputError: the source does not say when videos were uploaded, or none was within the log.
    """
    line = Timeline.of(CandidateDataset.open(runs.place.candidate_dataset))
    if line is None:
        raise InputError(
            "The study example_age needs videos with an upload_time within the log, and this log has none."
        )
    excluded = _excluded(runs)
    variants: Overrides = {
        "with": [_excluding(excluded - {"example_age"})],
        "without": [_excluding(excluded | {"example_age"})],
    }
    found = runs.of(variants, CANDIDATES)
    actual = by_day(line.days, line.shares())
    curves = {
        f"{name} example age, users of {kind}": _curve(of_variant, kind)
        for kind in ("the moment", "any time")
        for name, of_variant in found.items()
    }
    rows = [
        {"days since upload": str(day), "examples": f"{share:.2e}"}
        | {name: f"{curve[day]:.1e}" for name, curve in curves.items()}
        for day, share in actual.items()
    ]
    off = {name: f"{_distance(curve, actual):.1e}" for name, curve in curves.items()}
    rows.append({"days since upload": "RMS off the examples", "examples": ""} | off)
    return Study(
        "The example age and the popularity of new videos",
        "Mean probability of a video that was uploaded within the training window, by days since its upload "
        "(0: its first 24 hours): its share of the training examples, and the softmax of models trained with "
        "and without the example age. Users of the moment: those who watched then, with what they had "
        "watched before. Users of any time: the same for every day, so that only the example age moves.",
        rows,
        f"{runs.note} {len(line.video_ids):,} videos. The last row: root mean square over the days of what "
        "the mean over seeds is off the examples.",
        [svg("Probability of a video", lambda axes: _over_days(axes, actual, curves), width=8)],
    )


def tied(runs: Runs) -> Study:
    """One table for watched videos and the softmax's weights, or two: what the paper leaves open."""
    variants: Overrides = {
        "two tables (untied)": ["candidates.tied=false"],
        "one table (tied)": ["candidates.tied=true"],
    }
    found = runs.of(variants, CANDIDATES)
    metrics = {"recall@100": "recall@100", "map": "MAP", "ndcg@100": "NDCG@100"}
    scores = {
        title: {name: _estimate(of_variant, metric) for name, of_variant in found.items()}
        for metric, title in metrics.items()
    }
    rows = [
        {"embeddings": name}
        | {f"{title} ↑": f"{of_metric[name]:.4f}" for title, of_metric in scores.items()}
        | {
            "parameters": f"{of_variant[0].read('metrics')['parameters']:,}",
            "seconds an epoch": f"{_seconds(of_variant):.1f}",
        }
        for name, of_variant in found.items()
    ]
    return Study(
        "Tied or untied embeddings",
        "Whether a watched video and a video to recommend have one vector or two.",
        rows,
        f"{runs.note} On each user's last watch, over the whole catalogue. Seconds: the median epoch.",
        [
            svg(title, partial(_side_by_side, scores=of_metric), width=3.6)
            for title, of_metric in scores.items()
        ],
    )


STUDIES: dict[str, Callable[[Runs], Study]] = {"depth": depth, "example_age": example_age, "tied": tied}


# -- What is trained, and what is kept of it ------------------------------------------------------------


def _key(place: Workspace, config: Config) -> str:
    manifest = CandidateDataset.open(place.candidate_dataset).manifest
    return run_key(manifest, config.candidates, config.candidate_training)


def _train(place: Workspace, config: Config, folder: Path) -> None:
    """Keep the metrics on the held-out watches, the number of parameters, and the curves over days."""
    data = CandidateDataset.open(place.candidate_dataset)
    with tempfile.TemporaryDirectory() as scratch:
        task, curve = fit_candidates(
            data, config.candidates, config.candidate_training, Path(scratch) / "checkpoint"
        )
    task.cpu()
    metrics = evaluate_retrieval(data, softmax_scorer(task, data)).metrics
    parameters = sum(parameter.numel() for parameter in task.parameters())
    write_json(folder / "metrics.json", metrics | {"parameters": parameters})
    write_json(folder / "curve.json", [asdict(epoch) for epoch in curve])
    if line := Timeline.of(data):
        write_json(folder / "days.json", _days(task, data, line))


CANDIDATES = Task("candidate_training", _key, _train)


def _days(task: SoftmaxLoss, data: CandidateDataset, line: Timeline) -> dict[str, dict[int, float]]:
    """Return the model's mean probability of a video by days since upload, to both kinds of users."""
    users = {"the moment": line.users_of_the_moment(), "any time": line.users_of_any_time()}
    return {kind: by_day(line.days, probabilities(task, data, line, rows)) for kind, rows in users.items()}


# -- What the studies measure ---------------------------------------------------------------------------


def _excluded(runs: Runs) -> frozenset[str]:
    """Return the features that the base configuration leaves out."""
    return frozenset(Config.load(overrides=list(runs.overrides)).candidates.exclude)


def _excluding(names: Iterable[str]) -> str:
    return f"candidates.exclude=[{', '.join(sorted(names))}]"


def _feature_sets(runs: Runs) -> dict[str, frozenset[str]]:
    """Return what each feature set leaves out; a set that adds nothing that the source has is left out."""
    absent = CandidateDataset.open(runs.place.candidate_dataset).absent_features
    there = OTHERS - absent - _excluded(runs)
    added = {"+ searches": {"search_token_ids"}, "+ example age": {"example_age"}, "all": there}
    sets, left = {"watches only": there}, there
    for name, names in added.items():
        if names & left:
            left = left - names
            sets[name] = left
    return {name: frozenset(left) | _excluded(runs) for name, left in sets.items()}


def _estimate(found: list[Run], metric: str) -> Estimate:
    return Estimate.of(run.read("metrics")[metric] for run in found)


def _seconds(found: list[Run]) -> float:
    """Return the median time of an epoch, its validation included."""
    return float(np.median([line["seconds"] for run in found for line in run.curve]))


def _curve(found: list[Run], kind: str) -> Curve:
    curves = [run.read("days")[kind] for run in found]
    days = sorted(map(int, curves[0]))
    return {day: Estimate.of(curve[str(day)] for curve in curves) for day in days}


def _distance(curve: Curve, actual: dict[int, float]) -> float:
    return float(np.sqrt(np.mean([(curve[day].mean - share) ** 2 for day, share in actual.items()])))


# -- Plots ----------------------------------------------------------------------------------------------


def _by_depth(axes: Axes, scores: dict[str, list[Estimate]], label: str) -> None:
    for place, (name, colour) in enumerate(zip(scores, (GREY, GREEN, ORANGE, BLUE), strict=False)):
        means = [estimate.mean for estimate in scores[name]]
        widths = [estimate.half_width for estimate in scores[name]]
        at = np.array(DEPTHS) + (place - (len(scores) - 1) / 2) * 0.06
        axes.errorbar(at, means, yerr=widths, fmt="o-", color=colour, capsize=3, label=name)
    axes.set_xticks(list(DEPTHS))
    axes.set(xlabel="hidden layers", ylabel=label)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _over_days(axes: Axes, actual: dict[int, float], curves: dict[str, Curve]) -> None:
    at = np.array(list(actual)) + 0.5
    axes.plot(at, list(actual.values()), color=GREEN, marker="o", label="training examples")
    styles = ((BLUE, "-"), (ORANGE, "-"), (BLUE, ":"), (ORANGE, ":"))
    for (name, curve), (colour, style) in zip(curves.items(), styles, strict=True):
        mean = np.array([curve[day].mean for day in actual])
        width = np.array([curve[day].half_width for day in actual])
        axes.plot(at, mean, color=colour, linestyle=style, label=name)
        axes.fill_between(at, mean - width, mean + width, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="days since upload", ylabel="probability", ylim=(0, None))
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _side_by_side(axes: Axes, scores: dict[str, Estimate]) -> None:
    means = [estimate.mean for estimate in scores.values()]
    widths = [estimate.half_width for estimate in scores.values()]
    axes.errorbar(list(scores), means, yerr=widths, fmt="o", color=BLUE, capsize=4)
    axes.margins(x=0.4)
