"""Evaluate a ranker on the later window: metrics beside the baselines, calibration, the report."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from watchrank.config import TaskSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.errors import InputError
from watchrank.evaluation import metrics
from watchrank.evaluation.baselines import global_mean, video_mean
from watchrank.evaluation.report import write_report
from watchrank.models.ranking import Answers, RankingModel
from watchrank.storage import atomic_path, read_whole, write_json
from watchrank.training.folders import read_curve
from watchrank.training.ranking import PREDICTION_ROWS, load_model

ACTIVITY_EDGES = (1, 10, 50)
"""Bounds of the activity groups, by `user_impressions_7d`."""

Metrics = dict[str, Any]


def evaluate_ranking(model: Path, dataset: Path, output: Path, truth: Path | None = None) -> Metrics:
    """Measure a ranking model on the test window and write `metrics.json` and `report.html`.

    Args:
        model: folder of `train_ranking`.
        dataset: folder of `build_ranking_dataset`.
        output: folder for the results.
        truth: folder of the simulator's true expected watch times, when the log was simulated.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: a folder cannot be read, or the test window is empty.
    """
    data = RankingDataset.open(dataset)
    test, train = data.split("test"), data.split("train")
    if not len(test):
        raise InputError(f"The dataset {dataset} has no test rows. Give a longer log.")
    ranker, curve = read_whole(model, lambda folder: (load_model(folder), read_curve(folder)))
    answers = predict_tasks(ranker, test)
    predictions = {
        "ranker": answers[watch_time_task(ranker).name],
        "video mean": video_mean(train, test),
        "global mean": global_mean(train, test),
    }
    results: Metrics = {
        "window": data.manifest["splits"]["test"],
        "model": ranker.kind,
        "models": {name: score(test, predicted) for name, predicted in predictions.items()},
        "calibration": calibration_tables(test, predictions["ranker"], data.manifest.get("surfaces", {})),
        "roc": metrics.roc_curve(predictions["ranker"], test.impressions["clicked"]).T.tolist(),
    }
    if len(ranker.tasks) > 1:
        results["tasks"] = {task.name: score_task(task, test, answers[task.name]) for task in ranker.tasks}
    if (experts := expert_use(ranker, test)) is not None:
        results["experts"] = experts
    if truth is not None:
        results["truth"] = against_truth(test, predictions["ranker"], truth)
    with atomic_path(output) as fresh:
        fresh.mkdir()
        write_json(fresh / "metrics.json", results)
        write_report(
            fresh / "report.html", results, curve, test.impressions["watch_seconds"], predictions["ranker"]
        )
    return results


def named_metrics(results: Metrics) -> dict[str, float]:
    """Return the metrics of the ranker, of its tasks and of its experts, by a name each."""
    tasks, experts = results.get("tasks", {}), results.get("experts", {})
    return {
        **results["models"]["ranker"],
        **{f"{task}: {name}": value for task, found in tasks.items() for name, value in found.items()},
        **{f"{task}: entropy of the experts' use": use["entropy_of_use"] for task, use in experts.items()},
    }


def predict(model: RankingModel, split: Split) -> np.ndarray:
    """Return the expected watch time [N] in seconds of every impression of a split, in its order.

    Raises:
        InputError: the model has no task of watch time.
    """
    return predict_tasks(model, split)[watch_time_task(model).name]


def watch_time_task(model: RankingModel) -> TaskSettings:
    """Return the task by which videos are ranked.

    Raises:
        InputError: the model has none.
    """
    for task in model.tasks:
        if task.kind == "watch_time":
            return task
    raise InputError("The ranker has no task of the kind watch_time; name one in ranking.tasks.")


@torch.no_grad()
def predict_tasks(model: RankingModel, split: Split) -> dict[str, np.ndarray]:
    """Return each task's answer [N] to every impression of a split, in its order."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head: nn.Module = Answers(model).to(device).eval()
    batches = RankingBatches(split, model.inputs.input_names, PREDICTION_ROWS)
    parts = [head(batch.to(device).features).cpu()[batch.shown > 0] for batch in batches.epoch()]
    answers = torch.cat(parts).double().numpy()
    return {task.name: answers[:, place] for place, task in enumerate(model.tasks)}


def score_task(task: TaskSettings, split: Split, predicted: np.ndarray) -> dict[str, float]:
    """Return the metrics of a task's answers [N] on the impressions of a split that have its label."""
    label = np.asarray(split.impressions[task.label], dtype=np.float64)
    known = label >= 0
    predicted, label = predicted[known], label[known]
    found = {"impressions": float(known.sum()), "sum_ratio": metrics.sum_ratio(predicted, label)}
    match task.kind:
        case "binary":
            return found | {
                "auc": metrics.auc(predicted, label),
                "log_loss": metrics.log_loss(predicted, label),
            }
        case "watch_time":
            return found | {"xauc": metrics.xauc(predicted, label), "rmse": metrics.rmse(predicted, label)}
        case "regression":
            return found | {"rmse": metrics.rmse(predicted, label), "mae": metrics.mae(predicted, label)}


@torch.no_grad()
def expert_use(model: RankingModel, split: Split) -> dict[str, dict[str, Any]] | None:
    """Return how each task uses the experts on a split; None where there are none.

    Returns:
        By task the mean gate weight of each expert (`use`), the entropy of that mean and the mean entropy of
        an impression's weights, both as a share of the greatest there can be: near 0 all goes to one expert.
    """
    device = next(model.parameters()).device
    batches = RankingBatches(split, model.inputs.input_names, PREDICTION_ROWS)
    use, entropy = torch.zeros(()), torch.zeros(())
    for batch in batches.epoch():
        gates = model.gates(batch.to(device).features)
        if gates is None:
            return None
        of_shown = gates[batch.shown.flatten().to(device) > 0].double().cpu()  # [N, T, E]
        use, entropy = use + of_shown.sum(0), entropy + torch.special.entr(of_shown).sum((0, 2))
    greatest = np.log(use.shape[-1])
    shares = use / len(split)
    return {
        task.name: {
            "use": shares[place].tolist(),
            "entropy_of_use": float(torch.special.entr(shares[place]).sum() / greatest),
            "entropy": float(entropy[place] / len(split) / greatest),
        }
        for place, task in enumerate(model.tasks)
    }


def score(split: Split, predicted: np.ndarray) -> dict[str, float]:
    """Return every metric of one prediction [N] on a split."""
    seconds = np.asarray(split.impressions["watch_seconds"], dtype=np.float64)
    users = split.requests["user_id"][split.impressions["request"]]
    return {
        "per_user_loss": metrics.per_user_loss(users, predicted, seconds),
        "xauc": metrics.xauc(predicted, seconds),
        "click_auc": metrics.auc(predicted, split.impressions["clicked"]),
        "mae": metrics.mae(predicted, seconds),
        "rmse": metrics.rmse(predicted, seconds),
        "sum_ratio": metrics.sum_ratio(predicted, seconds),
    }


def calibration_tables(
    split: Split, predicted: np.ndarray, surfaces: dict[str, int]
) -> dict[str, list[Metrics]]:
    """Return predicted and observed seconds by decile of the prediction, by surface and by activity."""
    seconds = np.asarray(split.impressions["watch_seconds"], dtype=np.float64)
    request = split.impressions["request"]
    shown = split.requests["user_impressions_7d"][request]
    names = {number: name for name, number in surfaces.items()}
    groups = {
        "decile": [f"{decile + 1}" for decile in metrics.deciles(predicted)],
        "surface": [names.get(int(number), "unknown") for number in split.requests["surface"][request]],
        "activity": np.array(_activity_names())[np.searchsorted(ACTIVITY_EDGES, shown, side="right")],
    }
    return {kind: _by_group(group, predicted, seconds) for kind, group in groups.items()}


def _activity_names() -> list[str]:
    inner = [f"{low}-{high - 1}" for low, high in itertools.pairwise(ACTIVITY_EDGES)]
    return [f"{ACTIVITY_EDGES[0] - 1}", *inner, f"{ACTIVITY_EDGES[-1]}+"]


def _by_group(group: Any, predicted: np.ndarray, actual: np.ndarray) -> list[Metrics]:
    frame = pd.DataFrame({"group": group, "predicted": predicted, "actual": actual})
    table = frame.groupby("group", sort=False).agg(
        impressions=("actual", "size"), predicted=("predicted", "mean"), actual=("actual", "mean")
    )
    table = table.sort_values("predicted").reset_index()
    table["ratio"] = (table["predicted"] / table["actual"]).where(table["actual"] > 0)
    rows: list[Metrics] = json.loads(table.to_json(orient="records"))
    return rows


def against_truth(split: Split, predicted: np.ndarray, truth: Path) -> Metrics:
    """Compare predictions with the simulator's true expected watch time, overall and by decile.

    Raises:
        InputError: an impression has no true value in `truth`.
    """
    true_seconds = true_values(split, truth)["expected_watch_seconds"].to_numpy()
    return {
        "sum_ratio": metrics.sum_ratio(predicted, true_seconds),
        "correlation_log": float(np.corrcoef(np.log(predicted), np.log(true_seconds))[0, 1]),
        "deciles": _by_group([f"{d + 1}" for d in metrics.deciles(predicted)], predicted, true_seconds),
    }


def true_values(split: Split, truth: Path) -> pd.DataFrame:
    """Return the simulator's `expected_watch_seconds` and `click_probability` of a split's impressions.

    Raises:
        InputError: an impression has no true value in `truth`.
    """
    keys = pd.DataFrame(
        {
            "user_id": split.requests["user_id"][split.impressions["request"]],
            "video_id": split.impressions["video_id"],
            "timestamp": pd.to_datetime(split.impressions["timestamp_us"], unit="us", utc=True),
        }
    )
    values = ["expected_watch_seconds", "click_probability"]
    known = pd.read_parquet(truth, columns=[*keys.columns, *values])
    known["timestamp"] = known["timestamp"].astype(keys["timestamp"].dtype)
    joined = keys.merge(known, how="left", on=list(keys.columns), validate="many_to_one")
    if joined[values].isna().any(axis=None):
        raise InputError(
            f"{truth} lacks the true value of some impressions. Give the truth of this very log."
        )
    return joined[values]
