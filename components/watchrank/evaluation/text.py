"""Evaluate text matching on held-out searches: the whole catalogue of titles is ranked for each."""

from pathlib import Path
from typing import Any

import numpy as np

from watchrank.datasets.searches import SearchDataset
from watchrank.evaluation.retrieval import SCORES_AT_ONCE, Scorer, mean_ranks, rank_metrics
from watchrank.storage import atomic_path, write_json
from watchrank.training.text_matching import load_model, query_vectors, title_vectors


def evaluate_text(model: Path, dataset: Path, output: Path) -> dict[str, Any]:
    """Measure text matching on the test split and write `metrics.json`.

    Args:
        model: folder of `train_text`.
        dataset: folder of `build_search_dataset`.
        output: folder for the results.

    Returns:
        What `metrics.json` holds: `recall@10`, `recall@100` and `mrr` of the watched video under `models`, of
        `tower` and of `popularity`, the number of training searches that led to a video; and the same under
        `brand_new` for the `searches` whose video no training search led to.

    Raises:
        InputError: there is no model or no dataset.
    """
    data = SearchDataset.open(dataset)
    scorers = {"tower": tower_scores(model, data), "popularity": popularity(data)}
    ranks = {name: search_ranks(data, scorer) for name, scorer in scorers.items()}
    new = brand_new(data)
    results = {
        "documents": len(data.documents["video_id"]),
        "searches": len(new),
        "models": {name: search_metrics(own) for name, own in ranks.items()},
        "brand_new": {
            "searches": int(new.sum()),
            "models": {name: search_metrics(own[new]) for name, own in ranks.items()} if new.any() else {},
        },
    }
    with atomic_path(output) as fresh:
        fresh.mkdir()
        write_json(fresh / "metrics.json", results)
    return results


def search_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Return the metrics of the ranks, from 1, of each search's watched video [E], at least one."""
    found = rank_metrics(ranks)
    return {"recall@10": found["recall@10"], "recall@100": found["recall@100"], "mrr": found["map"]}


def brand_new(data: SearchDataset) -> np.ndarray:
    """Return which test searches [E] led to a video that no training search led to."""
    return ~np.isin(data.split("test")["document"], data.split("train")["document"])


def tower_scores(model: Path, data: SearchDataset) -> Scorer:
    """Return the scorer of a trained model: the cosines of the vectors."""
    trained = load_model(model)
    titles = title_vectors(trained, data)[1]
    asked, row = np.unique(data.split("test")["query"], return_inverse=True)
    queries = query_vectors(trained, data.queries[asked])
    return lambda part: queries[row[part]] @ titles.T


def popularity(data: SearchDataset) -> Scorer:
    """Return the scorer that counts the training searches which led to a video."""
    counts = np.bincount(data.split("train")["document"], minlength=len(data.documents["video_id"]))
    test = data.split("test")["document"]
    return lambda part: np.broadcast_to(counts, (len(test[part]), len(counts)))


def search_ranks(data: SearchDataset, scorer: Scorer) -> np.ndarray:
    """Return the rank, from 1, of the watched video of each test search [E] among all documents."""
    test, documents = data.split("test")["document"], len(data.documents["video_id"])
    size = max(SCORES_AT_ONCE // documents, 1)
    parts = (slice(start, start + size) for start in range(0, len(test), size))
    return np.concatenate([mean_ranks(scorer(part), test[part]) for part in parts])
