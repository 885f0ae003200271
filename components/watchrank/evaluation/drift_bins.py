"""Distributions over bins that a reference sample sets, and how far another sample's is from it.

A number's bins are the deciles of the reference; a value that fills a decile or more (a count's 0, a full
list) has a bin of its own. An id's bins are its most frequent values and one for the rest. What is missing
(NaN, `PAD_ID`) has a bin, too.
"""

from dataclasses import dataclass

import numpy as np

from watchrank.schema import PAD_ID

TOP_IDS = 20
"""Ids that have a bin of their own."""

DECILES = np.arange(1, 10) / 10


@dataclass(frozen=True)
class Comparison:
    """Two samples of one feature by bin."""

    labels: list[str]
    """What falls into each of the B bins."""
    reference: np.ndarray
    """Counts of the reference sample [B]."""
    current: np.ndarray
    """Counts of the current sample [B]."""

    @property
    def psi(self) -> float:
        """The population stability index, sum of (q - p) ln(q / p) over the shares p and q of the bins.

        Every bin counts half a row more than it has, so that an empty one is no infinity. Siddiqi, Credit
        Risk Scorecards, 2006.
        """
        p, q = (_smoothed(counts) for counts in (self.reference, self.current))
        return float(np.sum((q - p) * np.log(q / p)))

    @property
    def noise(self) -> float:
        """What the index comes to on average without any drift, for samples of independent rows.

        Yurdakul and Naranjo, Statistical Properties of the Population Stability Index, 2020.
        """
        used = int(np.count_nonzero(self.reference + self.current))
        return (used - 1) * (1 / int(self.reference.sum()) + 1 / int(self.current.sum()))


def compare_numbers(reference: np.ndarray, current: np.ndarray) -> Comparison:
    """Compare two samples of a number, [N] and [M] float64, NaN where it is missing."""
    known = reference[~np.isnan(reference)]
    deciles = np.quantile(known, DECILES, method="inverted_cdf") if len(known) else np.empty(0)
    values, times = np.unique(deciles, return_counts=True)
    heaps = values[times > 1]
    below = np.nextafter(heaps, -np.inf)
    edges = np.union1d(values, below)

    def counts(values: np.ndarray) -> np.ndarray:
        places = np.searchsorted(edges, values, side="left")
        return np.bincount(np.where(np.isnan(values), len(edges) + 1, places), minlength=len(edges) + 2)

    names = {edge: f"≤ {edge:.4g}" for edge in edges.tolist()}
    names |= {edge: f"< {heap:.4g}" for edge, heap in zip(below.tolist(), heaps, strict=True)}
    names |= {heap: f"= {heap:.4g}" for heap in heaps.tolist()}
    labels = list(names.values())
    labels += [f"> {edges[-1]:.4g}" if len(edges) else "any", "missing"]
    return Comparison(labels, counts(reference), counts(current))


def compare_ids(reference: np.ndarray, current: np.ndarray) -> Comparison:
    """Compare two samples of an id, [N] and [M] int64, `PAD_ID` where it is missing."""
    ids, times = np.unique(reference[reference != PAD_ID], return_counts=True)
    most_first = ids[np.argsort(-times, kind="stable")][:TOP_IDS]
    order = np.argsort(most_first)
    top = most_first[order]

    def counts(values: np.ndarray) -> np.ndarray:
        places = np.searchsorted(top, values)
        found = top[np.minimum(places, len(top) - 1)] == values if len(top) else np.zeros(len(values), bool)
        bins = np.full(len(values), len(top))
        bins[found] = order[places[found]]
        bins[values == PAD_ID] = len(top) + 1
        return np.bincount(bins, minlength=len(top) + 2)

    return Comparison([*map(str, most_first), "others", "missing"], counts(reference), counts(current))


def _smoothed(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return shares
