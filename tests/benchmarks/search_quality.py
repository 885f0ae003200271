"""Text matching on a log's searches: how often the watched video is found among all titles, by tower.

```
python tests/benchmarks/search_quality.py <workspace> [section.key=value ...]
```
The workspace holds `events` (`watchrank simulate`, `watchrank ingest`). The searches of the last days are the
test; beside the towers stand BM25 over the words of the titles and popularity, and beside all test searches
those for brand-new videos: what no training search led to, and what was uploaded after the training window.
A figure is the mean over `SEEDS` seeds, with half its range.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import bm25s
import ibis
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from watchrank import events as event_files
from watchrank.config import Config, EngineSettings
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.engine import connect
from watchrank.evaluation.retrieval import Scorer
from watchrank.evaluation.text import brand_new, popularity, search_metrics, search_ranks, tower_scores
from watchrank.models.text.tokens import words
from watchrank.training.text_matching import train_text
from watchrank.workspace import Workspace

SEEDS = int(os.environ.get("SEEDS", "3"))
TOWERS = {"bag_of_words": "bag-of-words DSSM", "cnn": "CNN-DSSM", "lstm": "LSTM-DSSM"}

TIED = 1e-3
"""Scores of BM25 that differ by less are tied."""


def bm25(data: SearchDataset, events: Path) -> Scorer:
    """Return BM25 with the library's parameters over all titles, equal scores in a random order.

    It gives dozens of titles one score; by the mean of their ranks none of them would be among the first 10.
    """
    con = connect(EngineSettings())
    titles = event_files.videos(con, events).order_by("video_id").select("video_id", "title").to_pyarrow()
    title_of = dict(zip(titles["video_id"].to_pylist(), titles["title"].to_pylist(), strict=True))
    index = bm25s.BM25()
    index.index(
        [words(title_of[video]) for video in data.documents["video_id"].tolist()], show_progress=False
    )
    queries = _test_queries(data, events)
    random = np.random.default_rng(0)
    order = TIED * random.random((len(queries), len(data.documents["video_id"])), dtype=np.float32)
    return lambda part: np.stack([index.get_scores(words(query)) for query in queries[part]]) + order[part]


def _test_queries(data: SearchDataset, events: Path) -> list[str]:
    """Return the texts of the test queries, in their order: the dataset keeps only their n-grams."""
    con = connect(EngineSettings())
    found = event_files.searches(con, events).filter(ibis._.clicked_video_id.notnull()).to_pyarrow()
    seconds = _seconds(found["timestamp"])
    asked = zip(
        found["user_id"].to_pylist(), seconds.tolist(), found["clicked_video_id"].to_pylist(), strict=True
    )
    text = dict(zip(asked, found["query"].to_pylist(), strict=True))
    test, videos = data.split("test"), data.documents["video_id"]
    keys = zip(test["user_id"].tolist(), test["now"].tolist(), videos[test["document"]].tolist(), strict=True)
    return [text[key] for key in keys]


def _seconds(times: pa.ChunkedArray) -> np.ndarray:
    return times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy() // 1_000_000


def uploaded_later(data: SearchDataset, events: Path) -> np.ndarray:
    """Return which test searches [E] led to a video uploaded after the last search of training."""
    con = connect(EngineSettings())
    videos = event_files.videos(con, events).select("video_id", "upload_time").to_pyarrow()
    seconds = _seconds(videos["upload_time"])
    late = videos["video_id"].to_numpy()[seconds > data.split("train")["now"].max()]
    return np.isin(data.documents["video_id"][data.split("test")["document"]], late)


def tower_ranks(data: SearchDataset, config: Config, tower: str, seed: int) -> np.ndarray:
    """Train a tower and return its ranks of the test searches."""
    text = config.text.model_copy(update={"tower": tower})
    training = config.text_training.model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        curve = train_text(data.path, Path(folder) / "model", text, training)
        seconds = time.perf_counter() - started
        print(f"{tower}, seed {seed}: {len(curve)} epochs in {seconds:.0f} s; {curve[-1]}", file=sys.stderr)
        return search_ranks(data, tower_scores(Path(folder) / "model", data))


def over_seeds(values: list[float]) -> str:
    """Return the mean, and half the range where there are several."""
    spread = f" ± {np.ptp(values) / 2:.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def main(workspace: Path, overrides: list[str]) -> None:
    """Print a table for all test searches, and one for each kind of brand-new video."""
    config, events = Config.load(overrides=overrides), Workspace(workspace).events
    with tempfile.TemporaryDirectory() as folder:
        build_search_dataset(events, Path(folder) / "searches", config.text, config.split)
        data = SearchDataset.open(Path(folder) / "searches")
        ranks = {
            "popularity": [search_ranks(data, popularity(data))],
            "BM25": [search_ranks(data, bm25(data, events))],
        }
        for tower, title in TOWERS.items():
            ranks[title] = [tower_ranks(data, config, tower, seed) for seed in range(SEEDS)]
        kinds = {
            "all test searches": np.ones(len(ranks["BM25"][0]), bool),
            "of them for videos that no training search led to": brand_new(data),
            "of them for videos uploaded after training": uploaded_later(data, events),
        }
        for name, kept in kinds.items():
            table = Table("model", "recall@10", "recall@100", "mrr", title=f"{kept.sum():,} {name}")
            for title, of_seeds in ranks.items():
                found = [search_metrics(own[kept]) for own in of_seeds]
                table.add_row(title, *(over_seeds([each[metric] for each in found]) for metric in found[0]))
            Console(width=110).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
