"""Train the ranker: dataset in, model folder out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor, nn

from watchrank.config import Objective, RankingSettings, TaskSettings, TrainingSettings, parse
from watchrank.datasets.batches import LABELS, Batch, RankingBatches, ResampledBatches, Share
from watchrank.datasets.ranking import OPTIONAL_LABELS, RankingDataset, Split
from watchrank.errors import InputError
from watchrank.models.calibration import Calibration
from watchrank.models.inputs import NEEDED, POOLED, InputLayer, id_features
from watchrank.models.lookup import top_ids
from watchrank.models.ranking import RankingModel
from watchrank.schema import RANKING_INPUTS
from watchrank.training import distributed
from watchrank.training.calibration import fit_calibration
from watchrank.training.fit import Batches, Epoch, Fit, Loss, device_of, run_key
from watchrank.training.folders import read_model, write_model
from watchrank.training.losses import objective_weights, task_loss
from watchrank.training.warm_start import origin, ranking_axes, start_from

QUANTILE_ROWS = 200_000
"""Impressions that the quantiles are taken from."""

SMALL_VOCABULARY = 10_000
PREDICTION_ROWS = 8_192


def train_ranking(
    dataset: Path,
    output: Path,
    ranking: RankingSettings,
    training: TrainingSettings,
    warm_start: Path | None = None,
) -> list[Epoch]:
    """Train a ranking model and write it to the folder `output`.

    A run that was killed resumes from the checkpoint beside `output`. Under torchrun all processes train, and
    process 0 writes.

    Args:
        dataset: folder of `datasets.ranking.build_ranking_dataset`.
        output: folder for `config.json`, `weights.safetensors` and `learning_curve.json`.
        ranking: the architecture.
        training: the run.
        warm_start: model folder of an earlier run to start from, as a release keeps it; None for a new start.

    Returns:
        The learning curve.
    """
    data = RankingDataset.open(dataset)
    learned_from = origin(data.manifest["splits"]["train"]["until"], warm_start)
    checkpoint = output.parent / f"{output.name}.checkpoint"
    with distributed.process_group(device_of(training).type), distributed.holding(output):
        torch.manual_seed(training.seed)
        model = new_model(data, ranking)
        if training.task_weighting == "uncertainty":
            learn_uncertainties(model, data.split("train"), training.objective)
        if warm_start:
            start_from(model, load_model(warm_start), ranking_axes, fresh={"log_variance"})
        key = run_key(data.manifest | learned_from, ranking, training)
        curve = _fit(model, data, training, checkpoint, key)
        if distributed.share().process == 0:
            if training.calibrate:
                calibrate(model, data.split("validation"))
            save_model(model, output, ranking, left_out(data, ranking), curve, learned_from)
            checkpoint.unlink(missing_ok=True)
        distributed.wait()
    return curve


def _fit(
    model: RankingModel, data: RankingDataset, training: TrainingSettings, checkpoint: Path, key: str
) -> list[Epoch]:
    share, validation = distributed.share(), data.split("validation")
    batches, drawn_as = training_batches(data.split("train"), model, training, share)
    names, labels = model.inputs.input_names, label_names(model.tasks)
    return Fit(
        model,
        ranking_loss(model, drawn_as),
        batches,
        RankingBatches(validation, names, training.batch_size, share=share, labels=labels)
        if len(validation)
        else None,
        training,
        checkpoint=checkpoint,
        key=key,
        validation_loss=ranking_loss(model, training.objective),
    ).run()


def ranking_loss(model: RankingModel, objective: Objective) -> Loss:
    """Return the loss of each impression [B, K] of a batch, the tasks' weighed; 0 where there is none.

    Args:
        model: its tasks' learned uncertainties (Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty
            to Weigh Losses, CVPR 2018, section 3) weigh too where they are trained: exp(-s) L + s / 2.
        objective: of the watch time.
    """

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        logits, total = network(batch.features), torch.zeros_like(batch.shown)
        for place, task in enumerate(model.tasks):
            own = task_loss(task, objective, logits[..., place], batch.labels, model.scale[place])
            if model.log_variance.requires_grad:
                spread = model.log_variance[place]
                own = torch.exp(-spread) * own + spread / 2 * (batch.labels[task.label] >= 0)
            total = total + task.weight * own
        return total * batch.shown

    return loss


@torch.no_grad()
def learn_uncertainties(model: RankingModel, train: Split, objective: Objective) -> None:
    """Let each task's uncertainty be trained, from where it fits the untrained task: s = ln 2 L."""
    labels = {
        name: torch.from_numpy(np.array(train.impressions[name], dtype=np.float32))
        for name in label_names(model.tasks) & train.impressions.keys()
    }
    for place, task in enumerate(model.tasks):
        if task.label in labels:
            start = (model.towers.logit.bias[place] * model.scale[place]).expand(len(train))
            loss = task_loss(task, objective, start, labels, model.scale[place])
            mean = loss.sum() / (labels[task.label] >= 0).sum().clamp(min=1)
            model.log_variance[place] = torch.log(2 * mean.clamp(min=1e-6))
    model.log_variance.requires_grad_(True)


def label_names(tasks: Sequence[TaskSettings]) -> set[str]:
    """Return the columns that the tasks learn from."""
    return {task.label for task in tasks}.union(*(LABELS for task in tasks if task.kind == "watch_time"))


@torch.no_grad()
def calibrate(model: RankingModel, validation: Split) -> None:
    """Fit each task's calibration on the validation window; without one it stays the identity."""
    if not len(validation):
        return
    z = logits(model, RankingBatches(validation, model.inputs.input_names, PREDICTION_ROWS)).numpy()
    for place, task in enumerate(model.tasks):
        label = validation.impressions[task.label].astype(np.float64)
        known = label >= 0
        if task.kind != "regression":
            calibration = model.calibrations[place]
            assert isinstance(calibration, Calibration)
            fit_calibration(calibration, z[known, place], label[known], task.kind)


@torch.no_grad()
def logits(model: RankingModel, batches: RankingBatches) -> Tensor:
    """Return the logits of all impressions [N, T], for batches in the order of their split; on the CPU."""
    device = next(model.parameters()).device
    parts = [model(batch.to(device).features).cpu()[batch.shown > 0] for batch in batches.epoch()]
    return torch.cat(parts)


def training_batches(
    train: Split, model: RankingModel, settings: TrainingSettings, share: Share
) -> tuple[Batches, Objective]:
    """Return the batches to learn from, and the objective under which their labels are to be read.

    `resample` draws each impression as often as its objective's weights say; what was drawn then weighs 1,
    as a click of one second does under `youtube`.

    Raises:
        InputError: what is asked for needs a label or a place in the list that the log does not have.
    """
    labels = label_names(model.tasks)
    if lacking := sorted(labels - train.impressions.keys()):
        raise InputError(
            f"The log has no {', '.join(lacking)}, which ranking.tasks name; it has "
            f"{', '.join(sorted({*LABELS, *OPTIONAL_LABELS} & train.impressions.keys()))}."
        )
    names = model.inputs.input_names
    if model.position is not None:
        if not (np.asarray(train.impressions["position"]) >= 0).any():
            raise InputError("The log has no position, which ranking.position_bias needs; leave it off.")
        names = names | {"position"}
    batches = RankingBatches(
        train, names, settings.batch_size, seed=settings.seed, share=share, labels=labels
    )
    if settings.weighting == "gradient":
        return batches, settings.objective
    if [task.kind for task in model.tasks] != ["watch_time"]:
        raise InputError("training.weighting=resample draws by watch time: it is for ranking.model=ranking.")
    clicked, seconds = (torch.from_numpy(np.array(train.impressions[name])).float() for name in LABELS)
    weights = objective_weights(settings.objective, clicked, seconds)
    positive, negative = (weight.numpy() for weight in weights)
    return ResampledBatches(batches, positive, negative, seed=settings.seed), "youtube"


def new_model(data: RankingDataset, settings: RankingSettings) -> RankingModel:
    """Make an untrained model whose vocabularies and quantiles are those of the training window."""
    train = data.split("train")
    if not len(train):
        raise InputError(
            f"The dataset {data.path} has no training rows. Give a longer log or fewer test days."
        )
    absent = left_out(data, settings)
    limits = {"video": settings.max_videos, "channel": settings.max_channels}
    keys = {
        domain: _vocabulary(train, names, limits.get(domain, SMALL_VOCABULARY))
        for domain, names in id_features(absent).items()
    }
    model = RankingModel(InputLayer(settings, absent, keys), settings)
    _fit_inputs(model.inputs, train)
    for place, task in enumerate(model.tasks):
        if task.label in train.impressions:
            _start(model, place, task, train.impressions[task.label])
    return model


@torch.no_grad()
def _start(model: RankingModel, place: int, task: TaskSettings, labels: np.ndarray) -> None:
    """Let a task begin at the mean of its labels [N]."""
    known = labels[labels >= 0].astype(np.float64)
    mean, bias = known.mean() if len(known) else 0.0, model.towers.logit.bias[place]
    match task.kind:
        case "watch_time":
            bias.fill_(math.log(max(mean, 1e-3)))
        case "binary":
            bias.fill_(float(logit(np.clip(mean, 1e-3, 1 - 1e-3))))
        case "regression":
            model.scale[place] = max(known.std() if len(known) else 0.0, 1e-6)
            bias.fill_(mean / model.scale[place])


def left_out(data: RankingDataset, settings: RankingSettings) -> frozenset[str]:
    """Return the features that the model does without: the source lacks them or the settings exclude them.

    Raises:
        InputError: the settings exclude what is no feature, or what no ranker can do without.
    """
    known = {spec.name for spec in RANKING_INPUTS} - NEEDED
    if unknown := sorted(set(settings.exclude) - known):
        raise InputError(
            f"ranking.exclude names {', '.join(unknown)}; it may name {', '.join(sorted(known))}."
        )
    return data.absent_features | set(settings.exclude)


def _vocabulary(train: Split, names: list[str], limit: int) -> Tensor:
    """The most clicked ids; of a user's feature, the most frequent."""
    ids, weights = [], []
    for name in names:
        if name in POOLED:
            continue
        on_video = name in train.impressions
        column = (train.impressions if on_video else train.requests)[name]
        ids.append(np.asarray(column))
        weights.append(np.asarray(train.impressions["clicked"]) if on_video else np.ones(len(column)))
    return top_ids(np.concatenate(ids), np.concatenate(weights), limit)


@torch.no_grad()
def _fit_inputs(inputs: InputLayer, train: Split) -> None:
    batches = RankingBatches(train, inputs.input_names, 1)
    rows = np.random.default_rng(0).choice(len(train), min(len(train), QUANTILE_ROWS), replace=False)
    inputs.fit(batches.read(np.sort(rows)).features)


def save_model(
    model: RankingModel,
    output: Path,
    settings: RankingSettings,
    absent: frozenset[str],
    curve: list[Epoch],
    learned_from: dict[str, Any],
) -> None:
    """Write the model folder atomically; `learned_from` is of `training.warm_start.origin`."""
    config = {"ranking": settings.model_dump(), "absent": sorted(absent), **learned_from}
    write_model(output, model.state_dict(), config, curve)


def load_model(folder: Path) -> RankingModel:
    """Read a model folder that `train_ranking` wrote; the model comes in evaluation mode, on the CPU.

    Raises:
        InputError: the folder is not a model or a file in it is damaged.
    """
    config, weights = read_model(folder)
    settings = parse(RankingSettings, config["ranking"], str(folder / "config.json"))
    absent = frozenset(config["absent"])
    keys = {domain: weights[f"inputs.embeddings.{domain}.vocabulary.keys"] for domain in id_features(absent)}
    model = RankingModel(InputLayer(settings, absent, keys), settings)
    model.load_state_dict(weights)
    return model.eval()
