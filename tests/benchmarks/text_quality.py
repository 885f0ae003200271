"""Text matching beside BM25 on real queries and titles: the same test queries, the same documents.

```
python tests/benchmarks/text_quality.py ../shared/data [QBQTC | WikiQA]
```
QBQTC: Chinese web search; a query ranks all titles of the test split, and learns against those of its batch.
WikiQA: English questions; a question ranks the sentences of its own page, and learns against 4 of them.
Queries are split by their text id: 7 tenths to train, 1 to stop training, 2 to test. The towers have 300 and
128 units, as in the papers. A figure is the mean over `SEEDS` seeds, with half its range.
"""

import gzip
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import bm25s
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from watchrank.config import FitSettings
from watchrank.datasets.batches import Batch
from watchrank.evaluation.graded import NDCG_AT, graded_metrics
from watchrank.models.lookup import top_ids
from watchrank.models.text.bag_of_words import BagOfWords
from watchrank.models.text.cnn import Cnn
from watchrank.models.text.lstm import Lstm
from watchrank.models.text.tokens import ngram_ids, words
from watchrank.models.text.two_towers import QUERY, TITLE, DocumentTower, QueryTower, TextMatch
from watchrank.schema import text_id
from watchrank.training.fit import Fit
from watchrank.training.matching import InBatchMatchingLoss, MatchingLoss

SEEDS = 3
METRICS = (*(f"ndcg@{k}" for k in NDCG_AT), "map", "mrr")
MAX_WORDS, MAX_NGRAMS, MAX_VOCABULARY = 40, 12, 30_000
TOWERS = {"bag-of-words DSSM": BagOfWords, "CNN-DSSM": Cnn, "LSTM-DSSM": Lstm}
IN_BATCH = FitSettings(
    epochs=5, batch_size=512, learning_rate=3e-3, embedding_rate=1.0, checkpoint_steps=10**9, sparse_rows=1
)
OWN_NEGATIVES = IN_BATCH.model_copy(update={"batch_size": 64, "learning_rate": 1e-3, "patience": 1})


@dataclass(frozen=True)
class Judged:
    """Queries and documents with judgements: rows of (query, document, grade), by index."""

    queries: list[str]
    documents: list[str]
    rows: np.ndarray
    own_documents: bool
    """Whether a query ranks the documents that were judged for it, or all of its split."""

    @property
    def training(self) -> FitSettings:
        """How it is learnt."""
        return OWN_NEGATIVES if self.own_documents else IN_BATCH

    @cached_property
    def of_query(self) -> np.ndarray:
        """The split of each query: 0 train, 1 validation, 2 test."""
        return np.array(
            [np.searchsorted([7, 8], text_id(query) % 10, side="right") for query in self.queries]
        )

    @cached_property
    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """The n-gram ids of the queries and of the documents."""
        read = {"max_words": MAX_WORDS, "max_ngrams": MAX_NGRAMS}
        return ngram_ids(self.queries, **read), ngram_ids(self.documents, **read)

    def split(self, number: int) -> np.ndarray:
        """Return the rows of a split."""
        return self.rows[self.of_query[self.rows[:, 0]] == number]


def qbqtc(folder: Path) -> Judged:
    """Read QBQTC."""
    with gzip.open(folder / "QBQTC" / "dev.json.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return judged([(row["query"], row["title"], int(row["label"])) for row in found], own_documents=False)


def wikiqa(folder: Path) -> Judged:
    """Read WikiQA."""
    with gzip.open(folder / "WikiQA" / "WikiQA-train.txt.gz", "rt", encoding="utf-8") as lines:
        found = [line.rstrip("\n").split("\t") for line in lines]
    return judged([(query, sentence, int(label)) for query, sentence, label in found], own_documents=True)


def judged(found: list[tuple[str, str, int]], *, own_documents: bool) -> Judged:
    """Number the queries and the documents; the highest of several grades counts."""
    queries = {query: place for place, query in enumerate(dict.fromkeys(row[0] for row in found))}
    documents = {text: place for place, text in enumerate(dict.fromkeys(row[1] for row in found))}
    grades: dict[tuple[int, int], int] = defaultdict(int)
    for query, document, grade in found:
        pair = queries[query], documents[document]
        grades[pair] = max(grades[pair], grade)
    rows = np.array([(*pair, grade) for pair, grade in grades.items()])
    return Judged([*queries], [*documents], rows, own_documents)


# -- Training ---------------------------------------------------------------------------------------------


class MatchingBatches:
    """The relevant pairs of a split with J negatives each: judged ones first, then random documents."""

    def __init__(self, data: Judged, split: int, negatives: int, seed: int) -> None:
        rows = data.split(split)
        self.pairs, self.data, self.negatives, self.seed = rows[rows[:, 2] > 0], data, negatives, seed
        self.size = data.training.batch_size
        self.pool = np.unique(rows[:, 1])
        self.irrelevant = defaultdict(list)
        for query, document, _ in rows[rows[:, 2] == 0]:
            self.irrelevant[query].append(document)

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.size)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.pairs))
        for first in range(skip * self.size, len(order), self.size):
            pairs = self.pairs[order[first : first + self.size]]
            documents = np.column_stack([pairs[:, 1], self._negatives(pairs[:, 0], random)])
            queries, titles = self.data.ids
            features = {QUERY: trimmed(queries[pairs[:, 0]]), TITLE: trimmed(titles[documents.ravel()])}
            yield Batch(features, {"id": torch.from_numpy(documents)}, torch.ones(len(pairs), 1))

    def _negatives(self, queries: np.ndarray, random: np.random.Generator) -> np.ndarray:
        drawn = random.choice(self.pool, (len(queries), self.negatives))
        for row, query in enumerate(queries):
            own = random.permutation(self.irrelevant[query])[: self.negatives]
            drawn[row, : len(own)] = own
        return drawn


def trimmed(ids: np.ndarray) -> torch.Tensor:
    """Cut padding [B, L, G] that no text of the batch needs."""
    there = ids >= 0
    length, most = there.any((0, 2)).sum(), there.any((0, 1)).sum()
    return torch.from_numpy(np.ascontiguousarray(ids[:, : max(length, 1), : max(most, 1)]))


def learn(data: Judged, tower: Callable[..., nn.Module], seed: int) -> tuple[TextMatch, float]:
    """Train both towers, which share their weights; return them and the texts a second."""
    torch.manual_seed(seed)
    train = MatchingBatches(data, 0, 4 if data.own_documents else 0, seed)
    every = [ids[np.unique(data.split(0)[:, column])].ravel() for column, ids in enumerate(data.ids)]
    ids = np.concatenate(every)
    text = tower(top_ids(ids, np.ones(len(ids)), MAX_VOCABULARY))
    model = TextMatch(QueryTower(text), DocumentTower(text))
    loss: MatchingLoss = MatchingLoss(model)
    if not data.own_documents:
        keys, counts = np.unique(train.pairs[:, 1], return_counts=True)
        expected = train.size * counts / counts.sum()
        loss = InBatchMatchingLoss(model, torch.from_numpy(keys), torch.from_numpy(expected))
    validation = MatchingBatches(data, 1, train.negatives, 0)
    settings = data.training.model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        run = Fit(loss, matching_loss, train, validation, settings, checkpoint=Path(folder) / "c", key="")
        curve = run.run()
    print(*curve, f"gamma {loss.gamma.item():.1f}", sep="\n", file=sys.stderr)
    return model.eval(), len(curve) * len(train.pairs) * (2 + train.negatives) / sum(e.seconds for e in curve)


def matching_loss(task: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss of a batch."""
    loss: torch.Tensor = task(batch.features, batch.labels["id"])
    return loss


# -- Scoring ----------------------------------------------------------------------------------------------

Scores = Callable[[int, np.ndarray], np.ndarray]
"""(query, documents [N]) -> scores [N]"""


def bm25(data: Judged) -> Scores:
    """Score by BM25 with the library's parameters; document frequencies are those of the test documents."""
    pool = np.unique(data.split(2)[:, 1])
    place = {document: row for row, document in enumerate(pool)}
    index = bm25s.BM25()
    index.index([words(data.documents[document]) for document in pool], show_progress=False)

    def scores(query: int, documents: np.ndarray) -> np.ndarray:
        found = index.get_scores(words(data.queries[query]))
        return np.asarray(found)[[place[document] for document in documents]]

    return scores


@torch.no_grad()
def cosines(data: Judged, model: TextMatch) -> Scores:
    """Score by the cosine of the vectors."""
    queries, titles = data.ids
    wanted = np.unique(data.split(2)[:, 0]), np.unique(data.split(2)[:, 1])
    vectors = []
    for tower, name, ids, rows in zip(
        (model.query, model.document), (QUERY, TITLE), (queries, titles), wanted, strict=True
    ):
        whole = np.zeros((len(ids), 128), dtype=np.float32)
        for part in np.array_split(rows, -(-len(rows) // 512)):
            whole[part] = tower({name: trimmed(ids[part])}).numpy()
        vectors.append(whole)
    return lambda query, documents: vectors[1][documents] @ vectors[0][query]


def evaluate(data: Judged, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the test queries that have a relevant document [Q], and their metrics [Q, metrics]."""
    rows = data.split(2)
    pool = np.unique(rows[:, 1])
    by_query = defaultdict(dict)
    for query, document, grade in rows:
        by_query[query][document] = grade
    kept = [query for query, grades in by_query.items() if max(grades.values()) > 0]
    found = []
    for query in kept:
        documents = np.array([*by_query[query]]) if data.own_documents else pool
        grades = np.array([by_query[query].get(document, 0) for document in documents])
        metrics = graded_metrics(scores(query, documents), grades)
        found.append([metrics[name] for name in METRICS])
    return np.array(kept), np.array(found)


# -- Tables -----------------------------------------------------------------------------------------------


def report(name: str, data: Judged) -> None:
    """Print the metrics of each model, and the reciprocal rank by the lengths of queries and documents."""
    started = time.perf_counter()
    queries, found = evaluate(data, bm25(data))
    models = {"BM25": found[None]}
    for title, tower in TOWERS.items():
        of_seeds = [evaluate(data, cosines(data, learn(data, tower, seed)[0]))[1] for seed in range(SEEDS)]
        models[title] = np.stack(of_seeds)  # [seeds, queries, metrics]
    table = Table(name, *METRICS, title=f"{len(queries):,} test queries")
    for title, values in models.items():
        table.add_row(title, *(over_seeds(values[:, :, column].mean(1)) for column in range(len(METRICS))))
    Console(width=150).print(table)
    for what, lengths in lengths_of(data, queries).items():
        print_by_length(f"mrr by {what}", lengths, {title: v[:, :, -1] for title, v in models.items()})
    print(f"{name}: {time.perf_counter() - started:.0f} s")


def over_seeds(values: np.ndarray) -> str:
    """Return the mean, and half the range where there are several."""
    spread = f" ± {np.ptp(values) / 2:.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def lengths_of(data: Judged, queries: np.ndarray) -> dict[str, np.ndarray]:
    """Return the words of each query, and of its first relevant document."""
    relevant = {}
    for query, document, grade in data.split(2):
        if grade > 0:
            relevant.setdefault(query, document)
    return {
        "words of the query": np.array([len(words(data.queries[query])) for query in queries]),
        "words of the document": np.array([len(words(data.documents[relevant[query]])) for query in queries]),
    }


def print_by_length(title: str, lengths: np.ndarray, ranks: dict[str, np.ndarray]) -> None:
    """Print the metric [seeds, queries] of each model by quarter of the lengths."""
    cuts = np.quantile(lengths, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(cuts, lengths)
    there = [part for part in range(4) if (quarter == part).any()]
    spans = [lengths[quarter == part] for part in there]
    table = Table(title, *(f"{span.min()}-{span.max()} ({len(span)})" for span in spans))
    for name, values in ranks.items():
        table.add_row(name, *(over_seeds(values[:, quarter == part].mean(1)) for part in there))
    Console(width=150).print(table)


READERS = {"QBQTC": qbqtc, "WikiQA": wikiqa}


def main(folder: Path, names: list[str]) -> None:
    """Print the tables of each data set."""
    for name in names or READERS:
        report(name, READERS[name](folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
