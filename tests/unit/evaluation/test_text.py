import json

import numpy as np
import pytest

from watchrank.config import TextSettings, TextTrainingSettings
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.evaluation import text as module
from watchrank.evaluation.text import brand_new, evaluate_text, popularity, search_ranks
from watchrank.models.text.two_towers import QUERY
from watchrank.training.text_matching import load_model, title_vectors, train_text, trimmed

TEXT = TextSettings(width=24, dim=16, max_words=12, max_ngrams=8)


@pytest.fixture(scope="module")
def folders(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    build_search_dataset(prepared.place.events, folder / "dataset", TEXT, prepared.config.split)
    training = TextTrainingSettings(epochs=3, batch_size=32)
    train_text(folder / "dataset", folder / "model", TEXT, training)
    return folder


def reference(ranks):
    return {
        "recall@10": np.mean([rank <= 10 for rank in ranks]),
        "recall@100": np.mean([rank <= 100 for rank in ranks]),
        "mrr": np.mean([1 / rank for rank in ranks]),
    }


def test_the_metrics_are_those_of_a_full_sort_for_each_search_one_by_one(folders, monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1_500)  # a few searches at once
    data = SearchDataset.open(folders / "dataset")
    results = evaluate_text(folders / "model", folders / "dataset", folders / "evaluation")
    model, test, train = load_model(folders / "model"), data.split("test"), data.split("train")
    ids, titles = title_vectors(model, data)
    ranks, popular, new = [], [], []
    counts = {int(video): 0 for video in range(len(ids))}
    for document in train["document"]:
        counts[int(document)] += 1
    for query, document in zip(test["query"], test["document"], strict=True):
        vector = model.query({QUERY: trimmed(data.queries[query][None])}).detach().numpy()[0]
        order = sorted(range(len(ids)), key=lambda row: -float(titles[row] @ vector))
        ranks.append(1 + order.index(int(document)))
        own = counts[int(document)]
        higher = sum(count > own for count in counts.values())
        popular.append(higher + (1 + sum(count == own for count in counts.values())) / 2)
        new.append(int(document) not in set(train["document"].tolist()))
    assert results["searches"] == len(ranks) > 30
    assert results["documents"] == len(ids)
    assert results["models"]["tower"] == pytest.approx(reference(ranks), abs=1e-6)
    assert results["models"]["popularity"] == pytest.approx(reference(popular), abs=1e-6)
    assert brand_new(data).tolist() == new
    found = results["brand_new"]
    assert 0 < found["searches"] == sum(new) < len(new)
    of_new = [rank for rank, is_new in zip(ranks, new, strict=True) if is_new]
    assert found["models"]["tower"] == pytest.approx(reference(of_new), abs=1e-6)
    assert json.loads((folders / "evaluation" / "metrics.json").read_text()) == results


def test_searches_find_videos_that_training_never_saw_and_popularity_does_not(folders):
    results = evaluate_text(folders / "model", folders / "dataset", folders / "evaluation")
    of_new = results["brand_new"]["models"]
    assert of_new["tower"]["recall@100"] > 0.6
    assert of_new["tower"]["mrr"] > 3 * of_new["popularity"]["mrr"]
    assert results["models"]["tower"]["recall@10"] > 3 * results["models"]["popularity"]["recall@10"]


def test_popularity_counts_the_searches_of_training_alone(folders):
    data = SearchDataset.open(folders / "dataset")
    scores = popularity(data)(slice(0, 2))
    assert scores.shape == (2, len(data.documents["video_id"]))
    assert scores[0].sum() == len(data.split("train")["document"])
    assert len(search_ranks(data, popularity(data))) == len(data.split("test")["document"])
