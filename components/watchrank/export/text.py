"""The towers of text matching as ONNX graphs: n-gram ids of any number of texts and of any length in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from onnx import ModelProto
from torch import nn

from watchrank.config import ExportSettings, IndexSettings
from watchrank.errors import ParityError
from watchrank.export.candidates import USER_VECTOR, with_index
from watchrank.export.index import EXCLUDED, SCORES, VIDEOS, WATCHED
from watchrank.export.onnx import export_onnx, serving_graph
from watchrank.export.parity import UNSEEN_ID, Arrays
from watchrank.models.inputs import Features
from watchrank.models.text.two_towers import QUERY, TITLE, QueryTower, TextMatch
from watchrank.schema import PAD_ID, SEARCH_NGRAMS, SEARCH_WORDS, USER_TENSORS, WATCH_HISTORY, Tensor
from watchrank.storage import atomic_path

VECTOR = "text_vector"
MODEL = "text_match"
SEARCH = next(tensor for tensor in USER_TENSORS if tensor.name == "search_ngram_ids")


class SearchTower(nn.Module):
    """The query tower on searches as they are kept and sent, `tokens.query_ids`: to [B, D]."""

    def __init__(self, query: QueryTower) -> None:
        super().__init__()
        self.query = query

    def forward(self, x: Features) -> torch.Tensor:
        """Return the unit vectors of the searches."""
        ids = x[SEARCH.name].view(-1, SEARCH_WORDS, SEARCH_NGRAMS)
        vectors: torch.Tensor = self.query({QUERY: ids})
        return vectors


def search_graph(
    query: QueryTower, ids: np.ndarray, vectors: np.ndarray, index: IndexSettings, settings: ExportSettings
) -> ModelProto:
    """Return the graph from a search to the videos whose titles match it best.

    Args:
        query: in evaluation mode, on the CPU.
        ids: of the videos with a title [N].
        vectors: of their titles [N, D].
        index: how they are searched.
        settings: opset and IR version.
    """
    tower = serving_graph(SearchTower(query), [SEARCH], [USER_VECTOR], settings)
    return with_index(tower, vectors, ids, index.search_k, index, settings)


@torch.no_grad()
def check_search(
    query: QueryTower,
    ids: np.ndarray,
    vectors: np.ndarray,
    graph: Path,
    searches: np.ndarray,
    tolerance: float,
) -> dict[str, float]:
    """Return the largest difference of a score of the graph's answers to the model's cosine, by case.

    Args:
        query: the trained tower.
        ids: of the videos [N].
        vectors: of their titles [N, D].
        graph: the file of `search_graph`.
        searches: real ones [B, words * n-grams].
        tolerance: the largest difference allowed.

    Raises:
        ParityError: a score differs by more.
    """
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    order = np.argsort(ids)
    cases = {
        "real searches": searches,
        "one search": searches[:1],
        "no words": np.full_like(searches[:2], PAD_ID),
        "unseen n-grams": np.where(searches == PAD_ID, PAD_ID, UNSEEN_ID),
    }
    differences = {}
    for name, x in cases.items():
        nothing = np.full((len(x), WATCH_HISTORY), PAD_ID)
        feed = {SEARCH.name: x, WATCHED: nothing, EXCLUDED: nothing[:, :1]}
        videos, scores = session.run([VIDEOS, SCORES], feed)
        expected = SearchTower(query)({SEARCH.name: torch.from_numpy(x)}).numpy()
        rows = order[np.searchsorted(ids[order], np.where(videos >= 0, videos, ids[order[0]]))]
        cosines = np.einsum("bd,bkd->bk", expected, vectors[rows])
        differences[name] = float(np.where(videos >= 0, np.abs(scores - cosines), 0.0).max(initial=0.0))
        if not differences[name] <= tolerance:
            raise ParityError(
                f"{graph.name} scores titles by {differences[name]:.2g} otherwise than the trained model on "
                f"{name!r}, more than {tolerance:.2g} allows. Look for an operator that exports inexactly."
            )
    return differences


def text_input(name: str) -> Tensor:
    """Return the input of a text's n-grams, [words, n-grams a word] as of `ngram_ids`."""
    return Tensor(name=name, dtype="int64", dims=(-1, -1), description="ids of each word's n-grams, -1 pads")


def export_text(
    model: TextMatch, output: Path, rows: Arrays, fields: Sequence[Tensor], settings: ExportSettings
) -> dict[str, float]:
    """Write `query.onnx` and `document.onnx` to the folder `output`, once they answer as the model does.

    Args:
        model: the towers, in evaluation mode, on the CPU.
        output: the folder; replaced as a whole.
        rows: real queries and titles [B, L, G] and fields [B, 1]; parity is checked on them and at the edges.
        fields: the inputs of the document's other fields.
        settings: opset, IR version and tolerance.

    Returns:
        Parity: the largest relative difference of a vector in each case of each graph.

    Raises:
        ParityError: a graph answers differently, or not with a number.
    """
    towers = {"query": (model.query, QUERY, []), "document": (model.document, TITLE, [*fields])}
    differences: dict[str, float] = {}
    with atomic_path(output) as fresh:
        fresh.mkdir()
        for name, (tower, text, others) in towers.items():
            inputs = [text_input(text), *others]
            graph = fresh / f"{name}.onnx"
            own = {spec.name: rows[spec.name] for spec in inputs}
            width = tower({key: torch.from_numpy(value[:1]) for key, value in own.items()}).shape[1]
            vector = Tensor(
                name=VECTOR, dtype="float32", dims=(width,), description="unit vector of the text"
            )
            export_onnx(tower, inputs, [vector], graph, settings)
            found = vector_parity(tower, graph, text_cases(own, text), settings.tolerance)
            differences |= {f"{name}: {case}": value for case, value in found.items()}
    return differences


def text_cases(rows: Arrays, text: str) -> dict[str, Arrays]:
    """Return the cases that break graphs: the real rows, and texts and fields at the edges.

    Args:
        rows: real features; `text` names the n-gram ids [B, L, G].
        text: their name.
    """
    ids = rows[text]
    edges = {
        "no words": np.full_like(ids, PAD_ID),
        "unseen n-grams": np.where(ids == PAD_ID, PAD_ID, UNSEEN_ID),
        "one word": ids[:, :1].copy(),
        "one n-gram": ids[:, :1, :1].copy(),
        "more padding": np.pad(ids, ((0, 0), (0, 9), (0, 5)), constant_values=PAD_ID),
        "twice as long": np.concatenate([np.tile(ids[:, :1], (1, ids.shape[1], 1)), ids], 1),
        "largest integers": np.full_like(ids, np.iinfo(np.int64).max),
    }
    unknown = {name: np.full_like(value, UNSEEN_ID) for name, value in rows.items() if name != text}
    missing = {name: np.full_like(value, PAD_ID) for name, value in rows.items() if name != text}
    return {
        "real rows": rows,
        "one row": {name: value[:1] for name, value in rows.items()},
        "unseen fields": rows | unknown,
        "missing fields": rows | missing,
        **{name: rows | {text: value} for name, value in edges.items()},
    }


@torch.no_grad()
def vector_parity(
    tower: nn.Module, graph: Path, cases: dict[str, Arrays], tolerance: float
) -> dict[str, float]:
    """Return the largest difference of a vector in each case, relative to the vector's length.

    Raises:
        ParityError: it is above `tolerance`, or no number.
    """
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    differences = {}
    for name, x in cases.items():
        expected = tower({key: torch.from_numpy(value) for key, value in x.items()}).numpy()
        (answer,) = session.run(None, x)
        length = np.linalg.norm(expected, axis=1)
        difference = float(np.max(np.linalg.norm(answer - expected, axis=1) / np.maximum(length, 1e-6)))
        if not difference <= tolerance:
            raise ParityError(
                f"{graph.name} differs from the trained model by {difference:.2g} (relative) on {name!r}, "
                f"more than {tolerance:.2g} allows. Look for an operator that exports inexactly."
            )
        differences[name] = difference
    return differences
