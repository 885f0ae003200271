"""Training throughput beside torch-rechub's trainer: the same rows, a network of the same size, one process.

torch-rechub is given what favours it: ids already mapped to rows and continuous features already
normalised, while watchrank's model does both in its graph. It runs in two ways: with a `DenseFeature` for
each continuous column, as its documentation shows, and with all of them as one vector, its fastest way.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from simulated import simulated_workspace
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.ranking import WideDeep
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

from watchrank.config import HIDDEN_PRESETS, RankingSettings, TrainingSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset
from watchrank.models.inputs import POOLED
from watchrank.models.ranking import RankingModel
from watchrank.training.fit import Fit
from watchrank.training.ranking import new_model, ranking_loss

WIDTH = 16
RANKING = RankingSettings(video_dim=WIDTH, channel_dim=WIDTH, category_dim=WIDTH, id_dropout=0)
IMPRESSIONS = 200_000
ROUNDS = 3
TheirData = tuple[dict[str, np.ndarray], np.ndarray]


def main() -> None:
    """Print impressions a second of both; the median of rounds in which they take turns."""
    data = RankingDataset.open(simulated_workspace(IMPRESSIONS).dataset)
    model = new_model(data, RANKING)
    vector = their_data(data, model)
    columns = as_columns(vector)
    table = Table(
        "hidden", "batch", title="Training, impressions a second", caption="x: against torch-rechub"
    )
    for name in ("float32", "bfloat16", "rechub, columns", "rechub, vector", "x columns", "x vector"):
        table.add_column(name, justify="right")
    for hidden in ("256", "512-256"):
        for batch in (512, 2_048, 8_192):
            settings = TrainingSettings(epochs=1, batch_size=batch, checkpoint_steps=10**9)
            lower = settings.model_copy(update={"precision": "bfloat16"})
            rates = [
                (
                    our_rate(data, hidden, settings),
                    our_rate(data, hidden, lower),
                    their_rate(columns, model, hidden, batch),
                    their_rate(vector, model, hidden, batch),
                )
                for _ in range(ROUNDS)
            ]
            full, low, by_column, by_vector = np.median(rates, axis=0)
            table.add_row(
                *(
                    hidden,
                    f"{batch:,}",
                    f"{full:,.0f}",
                    f"{low:,.0f}",
                    f"{by_column:,.0f}",
                    f"{by_vector:,.0f}",
                ),
                f"{full / by_column:.1f}-{low / by_column:.1f}",
                f"{full / by_vector:.1f}-{low / by_vector:.1f}",
            )
    Console(width=120).print(table)


def our_rate(data: RankingDataset, hidden: str, settings: TrainingSettings) -> float:
    """Train one epoch; return impressions a second."""
    model = new_model(data, RANKING.model_copy(update={"hidden": hidden}))
    batches = RankingBatches(data.split("train"), model.inputs.input_names, settings.batch_size, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        loss = ranking_loss(model, "logistic")
        fit = Fit(model, loss, batches, None, settings, checkpoint=Path(folder) / "c", key="")
        started = time.perf_counter()
        fit.run()
        return batches.rows / (time.perf_counter() - started)


def their_rate(data: TheirData, model: RankingModel, hidden: str, batch_size: int) -> float:
    """Train one epoch with torch-rechub's own loader, model and trainer; return impressions a second."""
    features, labels = data
    loader, _, _ = DataGenerator(features, labels).generate_dataloader(
        x_val=features, y_val=labels, x_test=features, y_test=labels, batch_size=batch_size
    )
    torch.manual_seed(0)
    layers = {"dims": HIDDEN_PRESETS[hidden], "activation": "relu"}
    wide, deep = their_features(features, model)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = CTRTrainer(WideDeep(wide, deep, layers), n_epoch=1, model_path=folder)
        started = time.perf_counter()
        trainer.train_one_epoch(loader)
        return len(labels) / (time.perf_counter() - started)


@torch.no_grad()
def their_data(data: RankingDataset, model: RankingModel) -> TheirData:
    """Return the training rows as torch-rechub wants them: a dictionary of arrays, and labels."""
    inputs = model.inputs
    batches = RankingBatches(data.split("train"), inputs.input_names, 8_192)
    parts = []
    for rows in np.array_split(np.arange(batches.rows), 32):
        batch = batches.read(rows)
        x = batch.features
        part = {"continuous": inputs.normaliser(inputs.continuous(x))[:, 0]}
        for domain, names in inputs.id_names.items():
            for name in names:
                rows = inputs.embeddings[domain].vocabulary(x[name])
                part[name] = rows if name in POOLED else rows[:, 0]
        parts.append(part | {"label": batch.labels["clicked"][:, 0]})
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    label = columns.pop("label")
    return columns, label


def as_columns(data: TheirData) -> TheirData:
    """Give every continuous feature a column of its own."""
    features, labels = data
    vector = features["continuous"]
    own = {f"continuous_{place}": np.ascontiguousarray(vector[:, place]) for place in range(vector.shape[1])}
    return {name: column for name, column in features.items() if name != "continuous"} | own, labels


def their_features(columns: dict[str, np.ndarray], model: RankingModel) -> tuple[list, list]:
    """Return wide and deep features: the same tables, shared as ours are, of the same width."""
    sparse = []
    for domain, names in model.inputs.id_names.items():
        rows = model.inputs.embeddings[domain].vocabulary.rows
        for name in names:
            shared = None if name == names[0] else names[0]
            kind = SequenceFeature if name in POOLED else SparseFeature
            options = {"pooling": "mean"} if name in POOLED else {}
            sparse.append(kind(name, rows, WIDTH, shared_with=shared, padding_idx=0, **options))
    dense = [
        DenseFeature(name, values.shape[1] if values.ndim > 1 else 1)
        for name, values in columns.items()
        if name.startswith("continuous")
    ]
    return dense, [*sparse, *dense]


if __name__ == "__main__":
    main()
