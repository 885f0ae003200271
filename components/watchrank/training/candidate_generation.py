"""Train candidate generation: dataset in, model folder out."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from watchrank.config import CandidateSettings, CandidateTrainingSettings, parse
from watchrank.datasets.batches import Batch, Share, column
from watchrank.datasets.candidates import CandidateDataset
from watchrank.datasets.columns import Columns
from watchrank.errors import InputError
from watchrank.models.candidate_generation import (
    ID_DOMAINS,
    NEEDED,
    NUMBERS,
    CandidateModel,
    UserTower,
    feature_names,
)
from watchrank.models.lookup import top_ids
from watchrank.training import distributed
from watchrank.training.fit import Epoch, Fit, device_of, run_key
from watchrank.training.folders import read_model, write_model
from watchrank.training.softmax import (
    InBatchSoftmaxLoss,
    SampledSoftmaxLoss,
    SoftmaxLoss,
    TwoLevelSoftmaxLoss,
)
from watchrank.training.warm_start import candidate_axes, origin, start_from

SMALL_VOCABULARY = 10_000
VALIDATED_IN_FULL = 100_000
"""Videos up to which the validation loss is the full softmax's, whatever was trained with."""

BLOCK = 16
"""Examples, consecutive in time, that stay together when an epoch is shuffled."""


class CandidateBatches:
    """One split of examples, cut into batches."""

    def __init__(
        self,
        columns: Columns,
        names: list[str],
        batch_size: int,
        *,
        end_seconds: int | None = None,
        seed: int | None = None,
        share: Share = Share(),
    ) -> None:
        """Make the batches.

        Args:
            columns: the examples, in order of time.
            names: the features to read.
            batch_size: examples a batch, over all processes.
            end_seconds: end of the training window, from which example ages count; None: all are 0.
            seed: of the shuffling; None keeps the order of time.
            share: what this process reads of each batch.
        """
        self.rows = len(columns["user_id"])
        self.batch_size, self.seed, self.share, self.end_seconds = batch_size, seed, share, end_seconds
        self._labels = columns["video_id"]
        self._now = columns.get("now", np.empty(0, np.int64))
        self._aged = "example_age" in names
        self._features = {name: columns[name] for name in names if name != "example_age"} if self.rows else {}

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        return -(-self.rows // self.batch_size)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch, leaving out the first `skip`."""
        order = np.arange(self.rows)
        if self.seed is not None:
            blocks = np.arange(0, self.rows, BLOCK)
            np.random.default_rng([self.seed, epoch]).shuffle(blocks)
            order = (blocks[:, None] + np.arange(BLOCK)).ravel()
            order = order[order < self.rows]
        for first in range(skip * self.batch_size, self.rows, self.batch_size):
            rows = order[first : first + self.batch_size]
            yield self.read(rows[self.share.process :: self.share.processes])

    def read(self, rows: np.ndarray) -> Batch:
        """Return some examples [B], by index."""
        features = {name: column(np.take(values, rows, axis=0)) for name, values in self._features.items()}
        if self._aged:
            now = np.take(self._now, rows)
            age = np.zeros(len(rows)) if self.end_seconds is None else self.end_seconds - now
            features["example_age"] = column(age.astype(np.float32))
        labels = {"video_id": column(np.take(self._labels, rows))}
        return Batch(features, labels, torch.ones(len(rows), 1))


def train_candidates(
    dataset: Path,
    output: Path,
    settings: CandidateSettings,
    training: CandidateTrainingSettings,
    warm_start: Path | None = None,
) -> list[Epoch]:
    """Train candidate generation and write it to the folder `output`.

    A run that was killed resumes from the checkpoint beside `output`.

    Args:
        dataset: folder of `datasets.candidates.build_candidate_dataset`.
        output: folder for `config.json`, `weights.safetensors` and `learning_curve.json`.
        settings: the architecture.
        training: the run.
        warm_start: model folder of an earlier run to start from, as a release keeps it; None for a new start.

    Returns:
        The learning curve.

    Raises:
        InputError: the loss is the two-level softmax, whose scores no index can serve.
    """
    if training.loss == "two_level":
        raise InputError("candidate_training.loss is two_level, which cannot be served; set another.")
    data = CandidateDataset.open(dataset)
    checkpoint = output.parent / f"{output.name}.checkpoint"
    with distributed.process_group(device_of(training).type), distributed.holding(output):
        task, curve = fit_candidates(data, settings, training, checkpoint, warm_start)
        if distributed.share().process == 0:
            save_model(task.model, output, settings, data, curve, warm_start)
            checkpoint.unlink(missing_ok=True)
        distributed.wait()
    return curve


def fit_candidates(
    data: CandidateDataset,
    settings: CandidateSettings,
    training: CandidateTrainingSettings,
    checkpoint: Path,
    warm_start: Path | None = None,
) -> tuple[SoftmaxLoss, list[Epoch]]:
    """Train a new model; return it with its loss, and the learning curve."""
    learned_from = _origin(data, warm_start)
    torch.manual_seed(training.seed)
    model = new_model(data, settings)
    if warm_start:
        start_from(model, load_model(warm_start), candidate_axes)
    task = new_loss(model, data, training)
    if isinstance(task, TwoLevelSoftmaxLoss) or type(task) is SoftmaxLoss:
        training = training.model_copy(update={"sparse_rows": model.vocabulary.rows + 1})
    names, share = model.tower.names, distributed.share()
    end, validation = data.manifest["end_seconds"], data.split("validation")
    batches = CandidateBatches(
        data.split("train"), names, training.batch_size, end_seconds=end, seed=training.seed, share=share
    )
    in_full = len(model.vocabulary.keys) <= VALIDATED_IN_FULL and not isinstance(task, TwoLevelSoftmaxLoss)
    curve = Fit(
        task,
        _loss,
        batches,
        CandidateBatches(validation, names, training.batch_size, end_seconds=end, share=share)
        if len(validation["user_id"])
        else None,
        training,
        checkpoint=checkpoint,
        key=run_key(data.manifest | learned_from, settings, training),
        validation_loss=_full_loss if in_full else _loss,
    ).run()
    return task, curve


def new_model(data: CandidateDataset, settings: CandidateSettings) -> CandidateModel:
    """Make an untrained model with the vocabularies of the training examples.

    Raises:
        InputError: there is nothing to train on, or the settings exclude what they cannot.
    """
    train, absent = data.split("train"), left_out(data, settings)
    if not len(train["user_id"]):
        raise InputError(f"The dataset {data.path} has no training examples. Give a longer log.")
    keys = {
        "video": top_ids(
            data.watches["video_id"], np.ones(len(data.watches["video_id"])), settings.max_videos
        )
    }
    for domain, name in ID_DOMAINS.items():
        if domain != "video" and name not in absent:
            ids = train[name].ravel()
            limit = settings.max_tokens if domain == "token" else SMALL_VOCABULARY
            keys[domain] = top_ids(ids, np.ones(len(ids)), limit)
    window = max(data.manifest["end_seconds"] - int(train["now"].min()), 1)
    return CandidateModel(UserTower(settings, absent, keys, float(window)), settings)


def new_loss(
    model: CandidateModel, data: CandidateDataset, training: CandidateTrainingSettings
) -> SoftmaxLoss:
    """Return the model with the loss that the settings name."""
    rows = model.vocabulary(torch.from_numpy(np.array(data.watches["video_id"])))
    counts = torch.bincount(rows, minlength=model.vocabulary.rows)[1:]
    match training.loss:
        case "full":
            return SoftmaxLoss(model)
        case "sampled":
            return SampledSoftmaxLoss(model, counts, training)
        case "in_batch":
            return InBatchSoftmaxLoss(model, counts, training)
        case "two_level":
            return TwoLevelSoftmaxLoss(model, counts)


def left_out(data: CandidateDataset, settings: CandidateSettings) -> frozenset[str]:
    """Return the features that the model does without: the source lacks them or the settings exclude them.

    Raises:
        InputError: the settings exclude what is no feature, or what no tower can do without.
    """
    known = {*ID_DOMAINS.values(), *NUMBERS} - NEEDED
    if unknown := sorted(set(settings.exclude) - known):
        raise InputError(
            f"candidates.exclude names {', '.join(unknown)}; it may name {', '.join(sorted(known))}."
        )
    return data.absent_features | set(settings.exclude)


def save_model(
    model: CandidateModel,
    output: Path,
    settings: CandidateSettings,
    data: CandidateDataset,
    curve: list[Epoch],
    warm_start: Path | None = None,
) -> None:
    """Write the model folder atomically."""
    config = {
        "candidates": settings.model_dump(),
        "absent": sorted(left_out(data, settings)),
        "window": model.tower.window,
        **_origin(data, warm_start),
    }
    write_model(output, _own_weights(model), config, curve)


def load_model(folder: Path) -> CandidateModel:
    """Read a model folder that `train_candidates` wrote; the model comes in evaluation mode, on the CPU.

    Raises:
        InputError: the folder is not a model or a file in it is damaged.
    """
    config, weights = read_model(folder)
    settings = parse(CandidateSettings, config["candidates"], str(folder / "config.json"))
    absent = frozenset(config["absent"])
    keys = {
        domain: weights[f"tower.embeddings.{domain}.vocabulary.keys"]
        for domain, name in ID_DOMAINS.items()
        if name in feature_names(absent)
    }
    model = CandidateModel(UserTower(settings, absent, keys, config["window"]), settings)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _origin(data: CandidateDataset, warm_start: Path | None) -> dict[str, Any]:
    end = datetime.fromtimestamp(data.manifest["end_seconds"], UTC)
    return origin(end.isoformat(timespec="seconds"), warm_start)


def _own_weights(model: CandidateModel) -> dict[str, Tensor]:
    """Return the weights, a tied table once."""
    weights = model.state_dict()
    if model.weights is model.tower.embedding("video").table:
        del weights["weights.weight"]
    return weights


def _loss(task: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = task(batch.features, batch.labels["video_id"])
    return loss


def _full_loss(task: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(task, SoftmaxLoss)
    return _loss(SoftmaxLoss(task.model), batch)
