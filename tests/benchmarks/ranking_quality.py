"""The ranker beside LightGBM on one workspace: the same days, the median of several seeds.

```
python tests/benchmarks/ranking_quality.py <workspace with a dataset> [section.key=value ...]
```
LightGBM is given every feature of the dataset, whether the ranker's defaults leave it out or not, and
beside them the smoothed mean watch time of the user and of the video. A training row's own watch time
takes no part in its means.
"""

import sys
import tempfile
from pathlib import Path

import lightgbm
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from watchrank.config import Config, RankingSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.evaluation.evaluate import predict, score
from watchrank.models.inputs import InputLayer
from watchrank.training.ranking import load_model, new_model, train_ranking
from watchrank.workspace import Workspace

SEEDS = 3
PRIOR_IMPRESSIONS = 20.0
PARAMETERS = {
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 100,
    "subsample": 0.8,
    "bagging_freq": 1,
}
PARAMETERS |= {"feature_fraction": 0.8, "verbose": -1}
ROUNDS, PATIENCE = 2_000, 50
METRICS = ("per_user_loss", "xauc", "click_auc", "mae", "rmse", "sum_ratio")


def main(workspace: Path, overrides: list[str]) -> None:
    """Print the median metrics of each model over the seeds."""
    place = Workspace(workspace)
    data = RankingDataset.open(place.dataset)
    test = data.split("test")
    answers = {"watchrank": [ranker(place, overrides, seed) for seed in range(SEEDS)]}
    for objective in ("tweedie", "regression"):
        answers[f"LightGBM, {objective}"] = gradient_boosting(data, objective)
    table = Table("model", *METRICS, title=f"Median of {SEEDS} seeds; smallest and largest below")
    for name, of_seeds in answers.items():
        scores = [score(test, answer) for answer in of_seeds]
        values = np.array([[one[metric] for metric in METRICS] for one in scores])
        table.add_row(name, *(f"{value:.4f}" for value in np.median(values, axis=0)))
        table.add_row("", *(f"{a:.4f}-{b:.4f}" for a, b in zip(values.min(0), values.max(0), strict=True)))
    Console(width=130).print(table)


def ranker(place: Workspace, overrides: list[str], seed: int) -> np.ndarray:
    """Train the ranker; return its answers on the test window [N]."""
    config = Config.load(overrides=[*overrides, f"training.seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        train_ranking(place.dataset, Path(folder) / "model", config.ranking, config.training)
        return predict(load_model(Path(folder) / "model"), RankingDataset.open(place.dataset).split("test"))


def gradient_boosting(data: RankingDataset, objective: str) -> list[np.ndarray]:
    """Train LightGBM, stopped by the validation window; return its answers on the test window, one a seed."""
    train, validation, test = (data.split(name) for name in ("train", "validation", "test"))
    inputs = new_model(data, RankingSettings(exclude=())).inputs
    x = {
        "train": table_of(inputs, train, train),
        "validation": table_of(inputs, validation, train),
        "test": table_of(inputs, test, train),
    }
    y = {"train": train.impressions["watch_seconds"], "validation": validation.impressions["watch_seconds"]}
    answers = []
    for seed in range(SEEDS):
        learned = lightgbm.train(
            PARAMETERS | {"objective": objective, "seed": seed, "num_threads": 2},
            lightgbm.Dataset(x["train"], y["train"]),
            ROUNDS,
            valid_sets=[lightgbm.Dataset(x["validation"], y["validation"])],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        answers.append(np.maximum(learned.predict(x["test"]), 1e-3))
    return answers


@torch.no_grad()
def table_of(inputs: InputLayer, split: Split, train: Split) -> np.ndarray:
    """Return the features of a split [N, F]: continuous ones, small vocabularies, smoothed means."""
    batches = RankingBatches(split, inputs.input_names, 1)
    parts = []
    for rows in np.array_split(np.arange(len(split)), max(len(split) // 50_000, 1)):
        x = batches.read(rows).features
        small = [
            inputs.embeddings[domain].vocabulary(x[name])
            for domain, names in inputs.id_names.items()
            if domain not in ("video", "channel")
            for name in names
        ]
        parts.append(torch.cat([inputs.continuous(x)[:, 0], *small], -1).numpy())
    user, video = (smoothed_mean(split, train, column) for column in ("user_id", "video_id"))
    return np.column_stack([np.concatenate(parts), user, video])


def smoothed_mean(split: Split, train: Split, column: str) -> np.ndarray:
    """Return the mean training watch time of each row's user or video [N], without the row itself."""
    seconds = np.asarray(train.impressions["watch_seconds"], dtype=np.float64)
    ids, inverse = np.unique(column_of(train, column), return_inverse=True)
    total, shown = np.bincount(inverse, seconds), np.bincount(inverse)
    wanted = column_of(split, column)
    place = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
    known = ids[place] == wanted
    own = seconds if split.impressions is train.impressions or len(split) == len(train) else 0.0
    trials = np.where(known, shown[place], 0) - (1 if np.ndim(own) else 0)
    return (np.where(known, total[place], 0.0) - own + PRIOR_IMPRESSIONS * seconds.mean()) / (
        trials + PRIOR_IMPRESSIONS
    )


def column_of(split: Split, column: str) -> np.ndarray:
    """Return a column of a split, one value an impression [N]."""
    if column in split.impressions:
        return split.impressions[column]
    return split.requests[column][split.impressions["request"]]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
