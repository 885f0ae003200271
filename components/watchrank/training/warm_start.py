"""Warm start: a new model takes over what an earlier one has learned.

A weight is taken over where its place stands for the same thing in both models: the row of an id in both
vocabularies, the column of an input that both read, a task of the same name, kind and label; elsewhere a
parameter must have the same name and size. All other weights stay as they are in a new model. So do all
buffers: vocabularies, quantiles, rates and calibration come from the new data.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from watchrank.errors import InputError
from watchrank.models.candidate_generation import CandidateModel
from watchrank.models.lookup import IdEmbedding, Vocabulary
from watchrank.models.multi_task import MixtureOfExperts
from watchrank.models.ranking import RankingModel
from watchrank.models.text.two_towers import TextMatch
from watchrank.models.text.words import WordBags
from watchrank.releases import checksum
from watchrank.training.folders import WEIGHTS, read_model

logger = logging.getLogger(__name__)

Axes = dict[str, tuple[pd.Index | None, ...]]
"""What the places along each axis of a parameter stand for; None for an axis that has only a size."""

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class WarmStart:
    """Which share of each parameter was taken over."""

    shares: Mapping[str, float]

    def __str__(self) -> str:
        """Say it in a line."""
        whole = sum(share == 1 for share in self.shares.values())
        rest = [f"{name} ({share:.1%})" for name, share in self.shares.items() if share < 1]
        return (
            f"{whole} of {len(self.shares)} parameters were taken over whole"
            f"{'; in part, or not at all: ' if rest else ''}{', '.join(rest)}."
        )


def origin(learned_until: str, champion: Path | None) -> dict[str, Any]:
    """Return what a model's configuration says of how it came about.

    Args:
        learned_until: last day, or time, that it learns from, in ISO 8601.
        champion: model folder that it starts from, or None.

    Raises:
        InputError: there is no such model, or it has learned from what came later: what the new one is to be
            judged on would not be new to it.
    """
    if champion is None:
        return {"learned_until": learned_until, "started_from": None}
    its = read_model(champion)[0].get("learned_until", "an unknown day")
    if its > learned_until:
        raise InputError(
            f"The model {champion} has learned from the log up to {its}, and this run learns up to "
            f"{learned_until}; start from an earlier release."
        )
    return {"learned_until": learned_until, "started_from": checksum(champion / WEIGHTS)}


@torch.no_grad()
def start_from(model: M, champion: M, axes: Callable[[M], Axes], *, fresh: Collection[str] = ()) -> WarmStart:
    """Take over the champion's weights into a new model, and log how many there are.

    Args:
        model: changed in place.
        champion: the trained model.
        axes: tells what the parameters of either stand for.
        fresh: parameters that are not taken over; nor are those that are not trained.
    """
    own, its, theirs = axes(model), axes(champion), dict(champion.named_parameters())
    shares = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        known = name in theirs and name not in fresh
        unlabelled = (None,) * parameter.dim()
        labels = own.get(name, unlabelled), its.get(name, unlabelled)
        shares[name] = _take(parameter, theirs[name], *labels) if known else 0.0
    report = WarmStart(shares)
    logger.info("Warm start: %s", report)
    return report


def _take(
    own: Tensor, its: Tensor, own_axes: Sequence[pd.Index | None], its_axes: Sequence[pd.Index | None]
) -> float:
    """Copy what stands for the same in both tensors; return which share of `own` that is."""
    if own.dim() != its.dim():
        return 0.0
    into, out_of = [], []
    for size, its_size, labels, its_labels in zip(own.shape, its.shape, own_axes, its_axes, strict=True):
        if labels is None or its_labels is None:
            if size != its_size:
                return 0.0
            found = np.arange(size)
        else:
            found = its_labels.get_indexer(labels)
        into.append(np.flatnonzero(found >= 0))
        out_of.append(found[found >= 0])
    own[_block(into)] = its[_block(out_of)]
    return float(np.prod([len(places) for places in into]) / max(own.numel(), 1))


def _block(places: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, np.ix_(*places)))


# -- What the parameters of the models stand for ------------------------------------------------------------


def ranking_axes(model: RankingModel) -> Axes:
    """Label the parameters of a ranker."""
    columns = pd.Index(model.inputs.columns)
    tasks = pd.Index([f"{task.name}: {task.kind} of {task.label}" for task in model.tasks])
    axes: Axes = {"structure.bottom.0.weight": (None, columns), "position.bias.weight": (tasks, None)}
    for name, parameter in model.towers.named_parameters(prefix="towers"):
        axes[name] = (tasks, *(None,) * (parameter.dim() - 1))
    structure = model.structure
    if isinstance(structure, MixtureOfExperts):
        experts, units = structure.experts, structure.first.out_features
        gates = tasks if structure.gate.out_features == experts * len(tasks) else ["all"]
        rows = pd.MultiIndex.from_product([[experts], range(units)])
        axes["structure.first.weight"], axes["structure.first.bias"] = (rows, columns), (rows,)
        rows = pd.MultiIndex.from_product([gates, [experts], range(experts)])
        axes["structure.gate.weight"] = (rows, columns)
    elif not len(structure.bottom):
        first = next(name for name in axes if name.startswith("towers") and name.endswith("weight"))
        axes[first] = (tasks, columns, None)
    return axes | _tables(model)


def candidate_axes(model: CandidateModel) -> Axes:
    """Label the parameters of candidate generation."""
    classes = (_rows(model.vocabulary), None)
    columns = pd.Index(model.tower.columns)
    return {"weights.weight": classes, "tower.layers.0.weight": (None, columns)} | _tables(model)


def text_axes(model: TextMatch) -> Axes:
    """Label the parameters of text matching."""
    axes = _tables(model)
    if model.document.fields is not None:
        axes["document.fields.layers.0.weight"] = (None, pd.Index(model.document.fields.columns))
    return axes


def _tables(model: nn.Module) -> Axes:
    """Label the rows of all tables by their ids."""
    axes: Axes = {}
    for name, module in model.named_modules():
        if isinstance(module, IdEmbedding | WordBags):
            window = module.window if isinstance(module, WordBags) else 1
            axes[f"{name}.table.weight"] = (_rows(module.vocabulary, window), None)
    return axes


def _rows(vocabulary: Vocabulary, window: int = 1) -> pd.Index:
    """Return (place, id) of each row of a table: the unknown id, then all ids for each place of a window."""
    ids = vocabulary.keys.cpu().numpy()
    places = np.arange(window) - window // 2
    return pd.MultiIndex.from_arrays(
        [np.append(0, places.repeat(len(ids))), np.append(-1, np.tile(ids, window))]
    )
