"""Metrics of a ranked list with judgements: N documents of grade 0, which is not relevant, 1, 2, ..."""

import numpy as np

NDCG_AT = (1, 3, 10)


def graded_metrics(scores: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """Return `ndcg@K`, `map` and `mrr` of one query; at least one document has a grade above 0.

    A grade g gains 2^g - 1, divided by log2(1 + p) in place p (Burges et al. 2005). To `map` and `mrr` a
    document is relevant when its grade is above 0. Tied documents are ranked worst first.

    Args:
        scores: of the documents [N].
        grades: of the documents [N].
    """
    ranked = grades[np.lexsort((grades, -scores))]
    best = np.sort(grades)[::-1]
    ndcg = {f"ndcg@{k}": _discounted(ranked[:k]) / _discounted(best[:k]) for k in NDCG_AT}
    places = 1 + np.flatnonzero(ranked)
    precision = np.arange(1, len(places) + 1) / places
    return ndcg | {"map": float(precision.mean()), "mrr": float(1 / places[0])}


def _discounted(grades: np.ndarray) -> float:
    places = np.arange(1, len(grades) + 1)
    return float(np.sum((2.0**grades - 1) / np.log2(1 + places)))
