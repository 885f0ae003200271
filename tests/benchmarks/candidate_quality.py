"""Candidate generation beside its baselines and other libraries: the same test rows, the same metrics.

```
python tests/benchmarks/candidate_quality.py <workspace with a candidate dataset> [section.key=value ...]
```
Every model is given the same watches; what learns from a seed is shown as the median of `SEEDS` seeds, with
the smallest and the largest value below.
"""

import contextlib
import io
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from rich.console import Console
from rich.table import Table
from scipy import sparse
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import YoutubeDNN
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator, pad_sequences
from torch_rechub.utils.match import generate_seq_feature_match

from watchrank.config import Config
from watchrank.datasets.candidates import CandidateDataset
from watchrank.evaluation.candidate_baselines import BASELINES, user_video_matrix
from watchrank.evaluation.candidates import softmax_scorer
from watchrank.evaluation.retrieval import CandidateData, Scorer, evaluate_retrieval, positions
from watchrank.training.candidate_generation import fit_candidates
from watchrank.workspace import Workspace

SEEDS = 3
FACTORS = 64
HISTORY = 50
METRICS = ("recall@10", "recall@50", "recall@100", "recall@200", "map", "ndcg@10", "ndcg@100")
METRICS += ("coverage@100", "novelty@100")


def main(workspace: Path, overrides: Sequence[str]) -> None:
    """Print the metrics of each model."""
    dataset = CandidateDataset.open(Workspace(workspace).candidate_dataset)
    sizes = {"test rows": dataset.split("test"), "videos": dataset.videos, "watches": dataset.watches}
    title = ", ".join(f"{len(columns['video_id']):,} {name}" for name, columns in sizes.items())
    table = Table("model", *METRICS, "seconds", title=title)
    for name, learn in BASELINES.items():
        add_rows(table, name, [timed(dataset, partial(learn, dataset))])
    own = {"watchrank": partial(watchrank_tower, overrides=overrides)}
    for name, learn in {**own, **MODELS}.items():
        add_rows(table, name, [timed(dataset, partial(learn, dataset, seed)) for seed in range(SEEDS)])
    Console(width=170).print(table)


def timed(dataset: CandidateData, learn: Callable[[], Scorer]) -> list[float]:
    """Return the metrics of what `learn` returns, and the seconds that learning took."""
    start = time.perf_counter()
    scorer = learn()
    seconds = time.perf_counter() - start
    metrics = evaluate_retrieval(dataset, scorer).metrics
    return [*(metrics[name] for name in METRICS), seconds]


def add_rows(table: Table, name: str, of_seeds: list[list[float]]) -> None:
    """Add the median of a model's seeds and, for more than one, the smallest and largest values."""
    table.add_row(name, *map(shown, np.median(of_seeds, axis=0)))
    if len(of_seeds) > 1:
        ends = zip(np.min(of_seeds, axis=0), np.max(of_seeds, axis=0), strict=True)
        table.add_row("", *(f"{shown(low)}-{shown(high)}" for low, high in ends))


def shown(value: float) -> str:
    """Return a share with four decimals and no leading zero; what is above 1 with fewer."""
    return f"{value:.4f}".lstrip("0") if value < 1 else f"{value:.4g}"


# -- Models -----------------------------------------------------------------------------------------------


def vector_scorer(users: np.ndarray, videos: np.ndarray) -> Scorer:
    """Return the scorer by inner product of the test rows' vectors [T, D] and the catalogue's [N, D]."""
    return lambda rows: users[rows] @ videos.T


def implicit_factors(make: Callable[..., Any], dataset: CandidateData, seed: int) -> Scorer:
    """Factorise the user-video matrix by the library implicit; a user without watches has the zero vector."""
    known, watched = user_video_matrix(dataset)
    model = make(factors=FACTORS, random_state=seed, num_threads=torch.get_num_threads())
    model.fit(sparse.csr_matrix(watched), show_progress=False)
    user = positions(known, dataset.split("test")["user_id"])
    return vector_scorer(np.where(user[:, None] >= 0, model.user_factors[user], 0), model.item_factors)


@dataclass(frozen=True, kw_only=True)
class RechubSettings:
    """How torch-rechub's YoutubeDNN is trained: the best found on MovieLens, by its test rows.

    The library's own example (negatives drawn by count ** 0.75, 3 of them, temperature 0.02, learning rate
    1e-4) stays below popularity there.
    """

    sample_method: int = 0
    negatives: int = 20
    dims: tuple[int, ...] = (128, FACTORS)
    temperature: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    batch_size: int = 256
    epochs: int = 10
    watches_a_user: int = 200
    """The newest ones; the library's samples take memory by the square of it."""


def rechub_youtube_dnn(dataset: CandidateData, seed: int, settings: RechubSettings | None = None) -> Scorer:
    """Train torch-rechub's YoutubeDNN on its own list-wise samples of histories of watches."""
    settings = settings or RechubSettings()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, the library draws from it
    torch.manual_seed(seed)
    quiet = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        return _train_rechub(dataset, settings, folder)


def _train_rechub(dataset: CandidateData, settings: RechubSettings, folder: str) -> Scorer:
    samples = rechub_samples(dataset, settings)
    model = rechub_model(len(dataset.videos["video_id"]) + 1, settings)
    optimizer = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    epochs = settings.epochs
    trainer = MatchTrainer(model, mode=2, optimizer_params=optimizer, n_epoch=epochs, model_path=folder)
    history = 1 + positions(dataset.videos["video_id"], dataset.split("test")["watched_video_ids"])
    first_is_right = np.zeros(len(samples["video"]), dtype=np.int64)
    train, test, videos = MatchDataGenerator(samples, first_is_right).generate_dataloader(
        {"hist_video": history},
        {"video": np.arange(1, len(dataset.videos["video_id"]) + 1)},
        batch_size=settings.batch_size,
        num_workers=0,
    )
    trainer.fit(train)
    vectors = {
        mode: trainer.inference_embedding(model, mode, loader, folder).numpy()
        for mode, loader in (("user", test), ("item", videos))
    }
    return vector_scorer(vectors["user"], vectors["item"])


def rechub_samples(dataset: CandidateData, settings: RechubSettings) -> dict[str, np.ndarray]:
    """Make the library's samples: a video, the history before it, and negatives; 0 pads a history.

    The library holds each user's last row out for its own test. It is given a copy of the user's last watch
    to hold out, for the test watches are not among `watches`.
    """
    video = 1 + positions(dataset.videos["video_id"], dataset.watches["video_id"])
    watches = pd.DataFrame({"user": np.asarray(dataset.watches["user_id"]), "video": video})
    watches = watches[watches["video"] > 0].groupby("user").tail(settings.watches_a_user)
    last = watches.groupby("user").tail(1)
    rows = pd.concat([watches, last]).sort_values("user", kind="stable", ignore_index=True)
    rows["time"] = rows.index
    samples, _ = generate_seq_feature_match(
        rows,
        "user",
        "video",
        "time",
        sample_method=settings.sample_method,
        mode=2,
        neg_ratio=settings.negatives,
    )
    return {
        "video": samples["video"].to_numpy(),
        "hist_video": pad_sequences(samples["hist_video"], maxlen=HISTORY, value=0),
        "neg_items": np.stack(samples["neg_items"].to_list()),
    }


def rechub_model(vocabulary: int, settings: RechubSettings) -> YoutubeDNN:
    """Make the model: the mean of the watched videos' embeddings, a tower, and the same table as output."""
    width = settings.dims[-1]
    video = SparseFeature("video", vocab_size=vocabulary, embed_dim=width)
    shared = {"vocab_size": vocabulary, "embed_dim": width, "shared_with": "video"}
    history = SequenceFeature("hist_video", pooling="mean", padding_idx=0, **shared)
    negatives = SequenceFeature("neg_items", pooling="concat", **shared)
    tower = {"dims": list(settings.dims)}
    return YoutubeDNN([history], [video], [negatives], tower, temperature=settings.temperature)


def watchrank_tower(dataset: CandidateDataset, seed: int, overrides: Sequence[str] = ()) -> Scorer:
    """Train watchrank's tower."""
    config = Config.load(overrides=[*overrides, f"candidate_training.seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        task, _ = fit_candidates(
            dataset, config.candidates, config.candidate_training, Path(folder) / "checkpoint"
        )
    return softmax_scorer(task, dataset)


MODELS: dict[str, Callable[[CandidateDataset, int], Scorer]] = {
    "implicit ALS": partial(implicit_factors, AlternatingLeastSquares),
    "implicit BPR": partial(implicit_factors, BayesianPersonalizedRanking),
    "torch-rechub YoutubeDNN": rechub_youtube_dnn,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
