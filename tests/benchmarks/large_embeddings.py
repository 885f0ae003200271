"""An embedding table of 10 million videos x 32: memory and speed, its gradients sparse and dense.

Each way trains in a process of its own, so that the peak of its memory is its own.
"""

import multiprocessing
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from simulated import simulated_workspace

from watchrank.config import RankingSettings, TrainingSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset
from watchrank.models.inputs import InputLayer
from watchrank.models.ranking import RankingModel
from watchrank.training.fit import Fit
from watchrank.training.ranking import left_out, new_model, ranking_loss

IMPRESSIONS = 200_000
WIDTH = 32


def main() -> None:
    """Print a line a size of the vocabulary and way of training it."""
    simulated_workspace(IMPRESSIONS)
    table = Table("videos", "gradients", "impressions/s", "peak memory, GiB", title="Large embedding tables")
    for videos, batch_size in ((10_000, 2_048), (100_000, 2_048), (1_000_000, 2_048), (10_000_000, 2_048)):
        for gradients in ("sparse", "dense"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rate, peak = pool.apply(train, (videos, batch_size, gradients))
            table.add_row(f"{videos:,}", gradients, f"{rate:,.0f}", f"{peak:.1f}")
    Console(width=100).print(table)


def train(videos: int, batch_size: int, gradients: str) -> tuple[float, float]:
    """Train on a part of the rows; return impressions a second and the peak of memory in GiB."""
    data = RankingDataset.open(simulated_workspace(IMPRESSIONS).dataset)
    settings = TrainingSettings(
        epochs=1,
        batch_size=batch_size,
        sparse_rows=1 if gradients == "sparse" else 2**62,
        checkpoint_steps=10**9,
    )
    model = model_of(data, videos)
    split = data.split("train")
    batches = RankingBatches(split, model.inputs.input_names, batch_size, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(
            model,
            ranking_loss(model, "exact"),
            batches,
            None,
            settings,
            checkpoint=Path(folder) / "c",
            key="",
        )
        (line,) = fit.run()
    return line.impressions_a_second, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def model_of(data: RankingDataset, videos: int) -> RankingModel:
    """Make a ranker whose vocabulary holds the log's videos and as many others as make up the number."""
    small = new_model(data, RankingSettings())
    keys = {domain: layer.vocabulary.keys for domain, layer in small.inputs.embeddings.items()}
    others = np.random.default_rng(0).integers(0, 2**60, max(videos - len(keys["video"]), 0))
    keys["video"] = torch.from_numpy(np.unique(np.concatenate([keys["video"].numpy(), others])))
    settings = RankingSettings(video_dim=WIDTH)
    model = RankingModel(InputLayer(settings, left_out(data, settings), keys), settings)
    model.inputs.overall_rates, model.inputs.normaliser = small.inputs.overall_rates, small.inputs.normaliser
    return model


if __name__ == "__main__":
    main()
