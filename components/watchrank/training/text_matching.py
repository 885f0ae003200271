"""Train text matching: dataset in, model folder out; and the vectors of all titles by a trained model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from watchrank.config import TextSettings, TextTrainingSettings, parse
from watchrank.datasets.batches import Batch, Share, column
from watchrank.datasets.columns import Columns
from watchrank.datasets.searches import FIELDS, SearchDataset
from watchrank.errors import InputError
from watchrank.models.inputs import Features
from watchrank.models.lookup import top_ids
from watchrank.models.text.bag_of_words import BagOfWords
from watchrank.models.text.cnn import Cnn
from watchrank.models.text.lstm import Lstm
from watchrank.models.text.side_fields import SideFields
from watchrank.models.text.two_towers import QUERY, TITLE, DocumentTower, QueryTower, TextMatch
from watchrank.schema import PAD_ID
from watchrank.training import distributed
from watchrank.training.fit import Epoch, Fit, device_of, run_key
from watchrank.training.folders import read_model, write_model
from watchrank.training.matching import InBatchMatchingLoss, MatchingLoss
from watchrank.training.warm_start import origin, start_from, text_axes

MAX_FIELD_IDS = 100_000
"""Ids of a side field that have an embedding."""

TEXTS_AT_ONCE = 1_024
"""Texts that become vectors at once, outside of training."""

_SHARED = "document.text."
"""The weights of the query tower's text under their second name."""


class SearchBatches:
    """One split of searches, cut into batches; each search brings its video and J random other ones."""

    def __init__(
        self,
        data: SearchDataset,
        split: str,
        fields: list[str],
        batch_size: int,
        *,
        negatives: int = 0,
        seed: int | None = None,
        share: Share = Share(),
    ) -> None:
        """Make the batches.

        Args:
            data: the dataset.
            split: "train", "validation" or "test".
            fields: the side fields to read.
            batch_size: searches a batch, over all processes.
            negatives: random videos a search, drawn from those that training searches led to.
            seed: of the shuffling; None keeps the order of time.
            share: what this process reads of each batch.
        """
        self.examples, self.queries = data.split(split), data.queries
        self.documents, self.fields = data.documents, fields
        self.pool = np.unique(data.split("train")["document"])
        self.batch_size, self.negatives, self.seed, self.share = batch_size, negatives, seed, share
        self.rows = len(self.examples["document"])

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        return -(-self.rows // self.batch_size)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch, leaving out the first `skip`."""
        order = np.arange(self.rows)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        for first in range(skip * self.batch_size, self.rows, self.batch_size):
            rows = order[first : first + self.batch_size]
            random = np.random.default_rng([self.seed or 0, epoch, first])
            negatives = random.choice(self.pool, (len(rows), self.negatives))
            own = slice(self.share.process, None, self.share.processes)
            yield self.read(rows[own], negatives[own])

    def read(self, rows: np.ndarray, negatives: np.ndarray) -> Batch:
        """Return some examples [B], by index, with other documents [B, J] for each."""
        documents = np.column_stack([self.examples["document"][rows], negatives])
        queries = {QUERY: trimmed(self.queries[self.examples["query"][rows]])}
        features = queries | document_features(self.documents, self.fields, documents.ravel())
        return Batch(features, {"document": torch.from_numpy(documents)}, torch.ones(len(rows), 1))


def trimmed(ids: np.ndarray) -> Tensor:
    """Cut the padding of n-gram ids [B, L, G] that no text needs; at least one place of each is left."""
    there = ids != PAD_ID
    words, ngrams = there.any((0, 2)).sum(), there.any((0, 1)).sum()
    return torch.from_numpy(np.array(ids[:, : max(words, 1), : max(ngrams, 1)]))


def document_features(documents: Columns, fields: list[str], rows: np.ndarray) -> Features:
    """Return the title's n-grams [B, L, G] and the fields [B, 1] of some documents, by row."""
    own = {name: column(documents[name][rows]) for name in fields}
    return {TITLE: trimmed(documents[TITLE][rows])} | own


# -- Training ---------------------------------------------------------------------------------------------


def train_text(
    dataset: Path,
    output: Path,
    text: TextSettings,
    training: TextTrainingSettings,
    warm_start: Path | None = None,
) -> list[Epoch]:
    """Train text matching and write it to the folder `output`.

    A run that was killed resumes from the checkpoint beside `output`.

    Args:
        dataset: folder of `datasets.searches.build_search_dataset`.
        output: folder for `config.json`, `weights.safetensors` and `learning_curve.json`.
        text: the architecture and the loss.
        training: the run.
        warm_start: model folder of an earlier run to start from, as a release keeps it; None for a new start.

    Returns:
        The learning curve.

    Raises:
        InputError: there is no dataset, or it was built with other settings of how texts are read.
    """
    data = SearchDataset.open(dataset)
    _check(data, text)
    learned_from = origin(data.manifest["splits"]["train"]["until"], warm_start)
    checkpoint = output.parent / f"{output.name}.checkpoint"
    with distributed.process_group(device_of(training).type), distributed.holding(output):
        torch.manual_seed(training.seed)
        model = new_model(data, text)
        if warm_start:
            start_from(model, load_model(warm_start), text_axes)
        fields = field_names(model)
        share, seed = distributed.share(), training.seed
        negatives = text.negatives if text.loss == "negatives" else 0
        size = training.batch_size
        train = SearchBatches(data, "train", fields, size, negatives=negatives, seed=seed, share=share)
        validation = SearchBatches(data, "validation", fields, size, negatives=negatives, share=share)
        curve = Fit(
            new_loss(model, data, text, training),
            _loss,
            train,
            validation if validation.rows else None,
            training,
            checkpoint=checkpoint,
            key=run_key(data.manifest | learned_from, text, training),
        ).run()
        if share.process == 0:
            config = {"text": text.model_dump(), "fields": fields, **learned_from}
            write_model(output, _own_weights(model), config, curve)
            checkpoint.unlink(missing_ok=True)
        distributed.wait()
    return curve


def new_model(data: SearchDataset, text: TextSettings) -> TextMatch:
    """Make an untrained model with the vocabularies of the training searches and of their videos."""
    train, documents = data.split("train"), data.documents
    own = np.unique(train["document"])
    ids, counts = zip(
        *_ngrams(data.queries, np.unique(train["query"])), *_ngrams(documents[TITLE], own), strict=True
    )
    keys = top_ids(np.concatenate(ids), np.concatenate(counts), text.max_ngram_ids)
    names = [name for name in FIELDS if text.fields and name in documents]
    of_fields = {name: top_ids(documents[name][own], np.ones(len(own)), MAX_FIELD_IDS) for name in names}
    return _model(text, keys, of_fields)


def new_loss(
    model: TextMatch, data: SearchDataset, text: TextSettings, training: TextTrainingSettings
) -> MatchingLoss:
    """Return the model with the loss that the settings name."""
    if text.loss == "negatives":
        return MatchingLoss(model, gamma=text.gamma, learned=text.gamma_learned)
    keys, counts = np.unique(data.split("train")["document"], return_counts=True)
    expected = torch.from_numpy(training.batch_size * counts / counts.sum())
    return InBatchMatchingLoss(
        model, torch.from_numpy(keys), expected, gamma=text.gamma, learned=text.gamma_learned
    )


def _check(data: SearchDataset, text: TextSettings) -> None:
    built = data.manifest["settings"]
    for name, value in built.items():
        if getattr(text, name) != value:
            raise InputError(
                f"The dataset {data.path} was built with text.{name} {value}, not {getattr(text, name)}; "
                "run `watchrank search-dataset` again or set it back."
            )


def _ngrams(texts: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the n-grams of some texts [N, L, G] with their counts, a part of the texts at a time."""
    for first in range(0, len(rows), TEXTS_AT_ONCE):
        yield np.unique(texts[rows[first : first + TEXTS_AT_ONCE]], return_counts=True)


def _loss(task: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = task(batch.features, batch.labels["document"])
    return loss


# -- The trained model ------------------------------------------------------------------------------------


def load_model(folder: Path) -> TextMatch:
    """Read a model folder that `train_text` wrote; the model comes in evaluation mode, on the CPU.

    Raises:
        InputError: the folder is not a model or a file in it is damaged.
    """
    config, weights = read_model(folder)
    text = parse(TextSettings, config["text"], str(folder / "config.json"))
    of_fields = {
        name: weights[f"document.fields.embeddings.{name}.vocabulary.keys"] for name in config["fields"]
    }
    model = _model(text, weights["query.text.bags.vocabulary.keys"], of_fields)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def field_names(model: TextMatch) -> list[str]:
    """Return the side fields that the document tower reads."""
    return [] if model.document.fields is None else [*model.document.fields.embeddings]


@torch.no_grad()
def title_vectors(model: TextMatch, data: SearchDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids [N], sorted, and the unit vectors [N, D] of all videos with a title.

    Among them are those that nobody has watched: this is how a video of today is found.

    Args:
        model: of `load_model`.
        data: the videos are its documents.
    """
    documents, fields = data.documents, field_names(model)
    rows = np.arange(len(documents["video_id"]))
    parts = np.array_split(rows, -(-len(rows) // TEXTS_AT_ONCE))
    vectors = [model.document(document_features(documents, fields, part)).numpy() for part in parts]
    return np.array(documents["video_id"]), np.concatenate(vectors)


@torch.no_grad()
def query_vectors(model: TextMatch, queries: np.ndarray) -> np.ndarray:
    """Return the unit vectors [Q, D] of queries' n-gram ids [Q, L, G], at least one."""
    parts = np.array_split(queries, -(-len(queries) // TEXTS_AT_ONCE))
    return np.concatenate([model.query({QUERY: trimmed(part)}).numpy() for part in parts])


def _model(text: TextSettings, keys: Tensor, of_fields: dict[str, Tensor]) -> TextMatch:
    tower = _tower(text, keys)
    fields = SideFields(of_fields, dim=text.dim) if of_fields else None
    return TextMatch(QueryTower(tower), DocumentTower(tower, fields))


def _tower(text: TextSettings, keys: Tensor) -> nn.Module:
    match text.tower:
        case "bag_of_words":
            return BagOfWords(keys, hidden=text.width, dim=text.dim)
        case "cnn":
            return Cnn(keys, maps=text.width, dim=text.dim)
        case "lstm":
            return Lstm(keys, width=text.width, dim=text.dim)


def _own_weights(model: TextMatch) -> dict[str, Tensor]:
    """Return the weights, those of the shared text once."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(_SHARED)}
