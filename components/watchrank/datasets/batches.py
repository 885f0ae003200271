"""Batches for the ranker: contiguous slices of memory-mapped columns, shuffled by block."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from watchrank.datasets.ranking import Split

LABELS = ("clicked", "watch_seconds")


class Batch(NamedTuple):
    """N impressions: features [N, 1] or [N, L], labels [N, 1]."""

    features: dict[str, Tensor]
    labels: dict[str, Tensor]


class RankingBatches:
    """One split, cut into batches of impressions.

    A batch is made of whole blocks of consecutive impressions, so that reading is sequential within a
    block; `epoch` shuffles the blocks by a permutation that only (seed, epoch) decides, which is what
    makes a run resumable in mid-epoch.
    """

    def __init__(
        self, split: Split, names: set[str], batch_size: int, *, seed: int | None = None, block: int = 64
    ) -> None:
        """Make the batches.

        Args:
            split: the columns to read.
            names: the features to read.
            batch_size: impressions a batch.
            seed: of the shuffling; None keeps the order of time.
            block: consecutive impressions that stay together.
        """
        self.rows = len(split.impressions["request"])
        self.batch_size = batch_size
        self.seed = seed
        self.block = min(block, batch_size)
        self._request = split.impressions["request"]
        self._user = {name: split.requests[name] for name in sorted(names & split.requests.keys())}
        self._video = {name: split.impressions[name] for name in sorted(names - self._user.keys())}
        self._labels = {name: split.impressions[name] for name in LABELS}

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        blocks = -(-self.rows // self.block)
        return -(-blocks // (self.batch_size // self.block))

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, leaving out the first `skip`."""
        starts = np.arange(0, self.rows, self.block)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(starts)
        step = self.batch_size // self.block
        for first in range(skip * step, len(starts), step):
            yield self.read([slice(start, start + self.block) for start in starts[first : first + step]])

    def read(self, rows: list[slice] | np.ndarray) -> Batch:
        """Return the impressions of some rows, given as slices or as indices."""
        request = _gather(self._request, rows)
        features = {name: _tensor(np.take(column, request, axis=0)) for name, column in self._user.items()}
        features |= {name: _tensor(_gather(column, rows)) for name, column in self._video.items()}
        labels = {name: _tensor(_gather(column, rows)).float() for name, column in self._labels.items()}
        return Batch(features, labels)


class ResampledBatches:
    """Impressions drawn in proportion to their weights, so that each drawn one weighs 1.

    An impression may be drawn as a positive and as a negative; its labels say as which. An epoch draws as
    many as there are impressions.
    """

    def __init__(
        self, batches: RankingBatches, positive: np.ndarray, negative: np.ndarray, *, seed: int
    ) -> None:
        """Make the batches.

        Args:
            batches: of all impressions.
            positive: weight of each impression as a positive [N].
            negative: and as a negative [N].
            seed: of the drawing.
        """
        self.batches, self.seed = batches, seed
        self._cumulative = np.cumsum(np.concatenate([positive, negative]), dtype=np.float64)

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        return -(-self.batches.rows // self.batches.batch_size)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, leaving out the first `skip`."""
        rows, size = self.batches.rows, self.batches.batch_size
        drawn = np.random.default_rng([self.seed, epoch]).random(rows) * self._cumulative[-1]
        for first in range(skip * size, rows, size):
            place = np.searchsorted(self._cumulative, drawn[first : first + size], side="right")
            positive = _tensor((place < rows).astype(np.float32))
            labels = {"clicked": positive, "watch_seconds": positive}
            yield Batch(self.batches.read(place % rows).features, labels)


def _gather(column: np.ndarray, rows: list[slice] | np.ndarray) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        return np.take(column, rows, axis=0)
    return np.concatenate([column[part] for part in rows])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values if values.ndim == 2 else values[:, None])
