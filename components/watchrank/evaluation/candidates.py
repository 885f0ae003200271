"""Evaluate candidate generation on each user's held-out watch, beside the baselines that it must beat."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from watchrank.config import GateSettings
from watchrank.datasets.candidates import CandidateDataset
from watchrank.errors import GateError
from watchrank.evaluation.candidate_baselines import BASELINES
from watchrank.evaluation.retrieval import Scorer, evaluate_retrieval, rank_metrics
from watchrank.schema import PAD_ID
from watchrank.storage import atomic_path, write_json
from watchrank.training.candidate_generation import CandidateBatches, load_model
from watchrank.training.softmax import SoftmaxLoss

NO_CLASS = np.float32(-1e30)


def evaluate_candidates(model: Path, dataset: Path, output: Path) -> dict[str, Any]:
    """Measure candidate generation on the test split and write `metrics.json`.

    Args:
        model: folder of `train_candidates`.
        dataset: folder of `build_candidate_dataset`.
        output: folder for the results.

    Returns:
        What `metrics.json` holds: the metrics of `tower` and of each baseline, under `models`; and under
        `newcomers` those of the `users` who have watched nothing before.
    """
    data = CandidateDataset.open(dataset)
    scorers = {"tower": softmax_scorer(SoftmaxLoss(load_model(model)), data)}
    scorers |= {name: learn(data) for name, learn in BASELINES.items()}
    found = {name: evaluate_retrieval(data, scorer) for name, scorer in scorers.items()}
    new = (data.split("test")["watched_video_ids"] == PAD_ID).all(axis=1)
    of_new = {name: rank_metrics(each.ranks[new]) for name, each in found.items()} if new.any() else {}
    results: dict[str, Any] = {
        "test_users": len(new),
        "models": {name: each.metrics for name, each in found.items()},
        "newcomers": {"users": int(new.sum()), "models": of_new},
    }
    with atomic_path(output) as fresh:
        fresh.mkdir()
        write_json(fresh / "metrics.json", results)
    return results


def check_gates(results: dict[str, Any], gates: GateSettings) -> None:
    """Refuse a tower that does not beat the gates.

    Raises:
        GateError: it is not above one of the baselines on one of the metrics.
    """
    tower = results["models"]["tower"]
    below = [
        f"{metric} {tower[metric]:.4f} against {name}'s {results['models'][name][metric]:.4f}"
        for name in gates.baselines
        for metric in gates.metrics
        if not tower[metric] > results["models"][name][metric]
    ]
    if below:
        raise GateError(
            f"Candidate generation is not above its baselines: {'; '.join(below)}. Train it better."
        )


def softmax_scorer(task: SoftmaxLoss, data: CandidateDataset) -> Scorer:
    """Return the scorer of a trained model; a video without a class comes after all others.

    A held-out watch has the example age of its time, as a request has that is served then.
    """
    task.eval()
    test = data.split("test")
    end = data.manifest["end_seconds"]
    batches = CandidateBatches(test, task.model.tower.names, 1, end_seconds=end)
    rows = task.model.vocabulary(torch.from_numpy(np.array(data.videos["video_id"]))).numpy()

    @torch.no_grad()
    def score(part: slice) -> np.ndarray:
        x = batches.read(np.arange(len(test["user_id"]))[part]).features
        scores = task.scores(task.model(x)).numpy()
        with_none = np.column_stack([np.full(len(scores), NO_CLASS), scores])
        found: np.ndarray = with_none[:, rows]
        return found

    return score
