"""Lists of near videos, all of one length: what the inverted-file index searches instead of the catalogue.

Spherical k-means (FAISS) groups the vectors by direction, as suits inner products. Each group is then halved
along the direction of its greatest spread, lengths included, until its parts fit into lists of one length.
The parts are equal, so that only the rounding of each group is padding. A list is found by the mean of its
members: its inner product with a query is their mean score.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

ITERATIONS = 8
SAMPLE = 64
"""Vectors a group that k-means looks at."""

LISTS_A_GROUP = 4


@dataclass(frozen=True, kw_only=True)
class InvertedFile:
    """C lists of L places each; a place without a video has the id -1, a zero vector and the bias -inf."""

    centroids: NDArray[np.float32]
    """[D, C]: the mean of each list's vectors."""

    vectors: NDArray[np.float32]
    """[C, D + 1, L]: the lists' vectors as columns; the last row is a bias, 0 or -inf."""

    ids: NDArray[np.int64]
    """[C, L]"""


def build_inverted_file(
    vectors: NDArray[np.float32], ids: NDArray[np.int64], lists: int, least_places: int, seed: int = 0
) -> InvertedFile:
    """Divide the videos among lists.

    Args:
        vectors: [N, D], of any length.
        ids: [N]
        lists: how many to aim at: a list holds ceil(N / lists) videos. Padding adds about an eighth to them.
        least_places: empty lists are added until there are so many places.
        seed: of k-means.
    """
    count, width = vectors.shape
    lists = min(lists, count)
    length = -(-count // lists)
    members = [
        part
        for group in _groups(vectors, max(1, lists // LISTS_A_GROUP), seed)
        for part in _halved(vectors, group, -(-len(group) // length))
    ]
    total = max(len(members), -(-least_places // length))
    centroids = np.zeros((width, total), np.float32)
    places = np.zeros((total, width + 1, length), np.float32)
    places[:, width] = -np.inf
    place_ids = np.full((total, length), -1, np.int64)
    for place, rows in enumerate(members):
        centroids[:, place] = vectors[rows].mean(axis=0)
        places[place, :width, : len(rows)] = vectors[rows].T
        places[place, width, : len(rows)] = 0
        place_ids[place, : len(rows)] = ids[rows]
    return InvertedFile(centroids=centroids, vectors=places, ids=place_ids)


def _groups(vectors: NDArray[np.float32], groups: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of each group of similar direction that has any."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    means = faiss.Kmeans(
        vectors.shape[1],
        groups,
        niter=ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE,
    )
    means.train(directions)
    group = means.assign(directions)[1]
    rows = np.argsort(group, kind="stable")
    ends = np.bincount(group, minlength=groups).cumsum()
    return [part for part in np.split(rows, ends[:-1]) if len(part)]


def _halved(vectors: NDArray[np.float32], rows: NDArray[np.int64], parts: int) -> Iterator[NDArray[np.int64]]:
    """Cut rows into `parts` of equal size, halving along the direction of greatest spread."""
    if parts == 1:
        yield rows
        return
    left = parts // 2
    cut = len(rows) * left // parts
    members = vectors[rows]
    order = np.argpartition(members @ _widest(members - members.mean(axis=0)), cut)
    yield from _halved(vectors, rows[order[:cut]], left)
    yield from _halved(vectors, rows[order[cut:]], parts - left)


def _widest(centred: NDArray[np.float32], steps: int = 6) -> NDArray[np.float32]:
    """Return the direction [D] of the greatest spread of [n, D], about, by power iteration."""
    tiny = np.finfo(np.float32).tiny
    scaled: NDArray[np.float32] = centred / (np.abs(centred).max() + tiny).astype(np.float32)
    direction: NDArray[np.float32] = scaled[np.argmax((scaled * scaled).sum(axis=1))]
    for _ in range(steps):
        direction = scaled.T @ (scaled @ direction)
        direction /= np.float32(np.linalg.norm(direction)) + tiny
    return direction
