"""Batches for the ranker: contiguous slices of memory-mapped columns, shuffled by block.

A row of a batch is a request with up to K of its impressions, so that what a user brings (histories, above
all) is read and embedded once a request. K is the largest that leaves hardly any place empty: 1 for a log
that shows videos one by one, the length of the slate for one that shows pages.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from watchrank.datasets.ranking import Split

LABELS = ("clicked", "watch_seconds")
"""What the ranker of watch time learns from."""

MOST_CANDIDATES = 32
LEAST_FILLED = 0.9
"""Share of a batch's places that must hold an impression."""

Blocks = list[slice]


class Batch(NamedTuple):
    """B requests and K places for their impressions: features [B, 1], [B, L] or [B, K], labels [B, K].

    A label below 0 is missing.
    """

    features: dict[str, Tensor]
    labels: dict[str, Tensor]
    shown: Tensor
    """Which places hold an impression [B, K], as 1.0 or 0.0; the others are to be left out."""

    @property
    def impressions(self) -> int:
        """How many impressions there are."""
        return int(self.shown.sum())

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        features = {name: value.to(device, non_blocking=True) for name, value in self.features.items()}
        labels = {name: value.to(device, non_blocking=True) for name, value in self.labels.items()}
        return Batch(features, labels, self.shown.to(device, non_blocking=True))


@dataclass(frozen=True)
class Share:
    """Which part of every batch is read: that of one of several processes."""

    process: int = 0
    processes: int = 1


class RankingBatches:
    """One split, cut into batches of impressions.

    A batch is made of blocks of consecutive requests, so that reading is sequential within a block; `epoch`
    shuffles the blocks by a permutation that only (seed, epoch) decides, which is what makes a run
    resumable in mid-epoch.
    """

    def __init__(
        self,
        split: Split,
        names: set[str],
        batch_size: int,
        *,
        seed: int | None = None,
        block: int = 64,
        share: Share = Share(),
        labels: Collection[str] = LABELS,
    ) -> None:
        """Make the batches.

        Args:
            split: the columns to read.
            names: the features to read.
            batch_size: impressions a batch, over all processes; the most there are.
            seed: of the shuffling; None keeps the order of time.
            block: consecutive impressions that stay together.
            share: what this process reads of each batch.
            labels: to read.
        """
        self.rows = len(split)
        self.batch_size, self.seed, self.share = batch_size, seed, share
        block = min(block, batch_size)
        self._request = split.impressions["request"]
        self._starts = _row_starts(self._request, min(MOST_CANDIDATES, block))
        self.candidates = int(np.diff(self._starts).max(initial=1))
        self._block = max(block // self.candidates, 1)
        self._step = max(batch_size // (self._block * self.candidates), 1)
        self._user = {name: split.requests[name] for name in sorted(names & split.requests.keys())}
        self._video = {name: split.impressions[name] for name in sorted(names - self._user.keys())}
        self._labels = {name: split.impressions[name] for name in labels}

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        blocks = -(-(len(self._starts) - 1) // self._block)
        return -(-blocks // self._step)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch, leaving out the first `skip`."""
        last = len(self._starts) - 1
        firsts = np.arange(0, last, self._block)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(firsts)
        for place in range(skip * self._step, len(firsts), self._step):
            own = firsts[place : place + self._step][self.share.process :: self.share.processes]
            yield self._batch([slice(first, min(first + self._block, last)) for first in own])

    def read(self, impressions: np.ndarray) -> Batch:
        """Return some impressions [N], by index, one a row."""
        request = np.take(self._request, impressions)
        features = {name: column(np.take(values, request, axis=0)) for name, values in self._user.items()}
        features |= {name: column(np.take(values, impressions)) for name, values in self._video.items()}
        labels = {name: column(np.take(values, impressions)).float() for name, values in self._labels.items()}
        return Batch(features, labels, torch.ones(len(impressions), 1))

    def _batch(self, blocks: Blocks) -> Batch:
        starts = _gather(self._starts[:-1], blocks)
        shown = np.arange(self.candidates) < (_gather(self._starts[1:], blocks) - starts)[:, None]
        impressions = [slice(self._starts[rows.start], self._starts[rows.stop]) for rows in blocks]
        request = np.take(self._request, starts)
        features = {name: column(np.take(values, request, axis=0)) for name, values in self._user.items()}
        features |= {
            name: _places(_gather(values, impressions), shown) for name, values in self._video.items()
        }
        labels = {
            name: _places(_gather(values, impressions), shown).float()
            for name, values in self._labels.items()
        }
        return Batch(features, labels, torch.from_numpy(shown.astype(np.float32)))


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
        """Yield this process's share of the batches of one epoch, leaving out the first `skip`."""
        rows, size, share = self.batches.rows, self.batches.batch_size, self.batches.share
        drawn = np.random.default_rng([self.seed, epoch]).random(rows) * self._cumulative[-1]
        for first in range(skip * size, rows, size):
            own = drawn[first : first + size][share.process :: share.processes]
            place = np.searchsorted(self._cumulative, own, side="right")
            positive = column((place < rows).astype(np.float32))
            batch = self.batches.read(place % rows)
            yield batch._replace(labels={"clicked": positive, "watch_seconds": positive})


def _row_starts(request: np.ndarray, most: int) -> np.ndarray:
    """Return where each row of a batch starts in the sorted column `request` [N], and N at the end."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(request)) + 1, [len(request)]])
    counts = np.diff(starts)
    candidates = most
    while candidates > 1 and len(request) < LEAST_FILLED * candidates * np.sum(-(-counts // candidates)):
        candidates -= 1
    rows = -(-counts // candidates)
    within = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    return np.append(np.repeat(starts[:-1], rows) + within * candidates, len(request))


def _gather(values: np.ndarray, parts: Blocks) -> np.ndarray:
    return np.concatenate([values[part] for part in parts] or [values[:0]])


def column(values: np.ndarray) -> Tensor:
    """Return values [N] as a tensor [N, 1]; lists [N, L] as they are."""
    return torch.from_numpy(values if values.ndim == 2 else values[:, None])


def _places(values: np.ndarray, shown: np.ndarray) -> Tensor:
    """Lay the values [N] of impressions out in their places [B, K]; an empty place holds 0."""
    if len(values) == shown.size:
        return torch.from_numpy(values.reshape(shown.shape))
    places = np.zeros(shown.shape, dtype=values.dtype)
    places[shown] = values
    return torch.from_numpy(places)
