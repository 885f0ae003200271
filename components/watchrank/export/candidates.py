"""Candidate generation as one ONNX graph: a user's raw features in, the best videos out.

The tower and its index share one space of vectors, so they are exported, versioned and served as one file.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto, compose

from watchrank.config import ExportSettings, IndexSettings
from watchrank.datasets.candidates import CandidateDataset
from watchrank.errors import ParityError
from watchrank.export.index import EXCLUDED, SCORES, USER, VIDEOS, WATCHED, build_index
from watchrank.export.onnx import save_graph, serving_graph
from watchrank.export.parity import Arrays, edge_cases
from watchrank.models.candidate_generation import CandidateModel
from watchrank.schema import CANDIDATE_INPUTS, CANDIDATES, PAD_ID, Tensor
from watchrank.storage import atomic_path
from watchrank.training.candidate_generation import CandidateBatches, load_model

USER_VECTOR = Tensor(name=USER, dtype="float32", dims=(CANDIDATES,), description="the user's vector")


def export_candidates(
    model: Path, dataset: Path, output: Path, index: IndexSettings, settings: ExportSettings
) -> dict[str, float]:
    """Write `model.onnx` to the folder `output`, once it answers as the model does.

    Args:
        model: folder of `train_candidates`.
        dataset: the folder it was trained on; parity is checked on its test rows and at the edges.
        output: the folder; replaced as a whole.
        index: the kind of index, and how many videos it answers.
        settings: opset, IR version and tolerance.

    Returns:
        Parity: of each case the largest relative difference of a score; of an inverted file also `recall`,
        the share of the exact answer's videos that it finds on the real rows.

    Raises:
        ParityError: the graph scores a video differently, or answers one that was watched.
    """
    trained, data = load_model(model), CandidateDataset.open(dataset)
    with atomic_path(output) as fresh:
        fresh.mkdir()
        graph = fresh / "model.onnx"
        save_graph(candidate_graph(trained, index, settings), graph)
        differences = _parity(trained, graph, _cases(data, trained, settings.parity_rows), settings.tolerance)
    return differences


def tower_inputs(names: Collection[str]) -> list[Tensor]:
    """Return the inputs of a tower that reads the features of these names, in the order of the schema."""
    return [spec for spec in CANDIDATE_INPUTS if spec.name in names]


def candidate_outputs(k: int) -> list[Tensor]:
    """Return the outputs of the graph."""
    return [
        Tensor(name=VIDEOS, dtype="int64", dims=(k,), description="the best videos, -1 where none is left"),
        Tensor(name=SCORES, dtype="float32", dims=(k,), description="their scores"),
    ]


def candidate_graph(model: CandidateModel, index: IndexSettings, settings: ExportSettings) -> ModelProto:
    """Return the user tower with its index behind it."""
    tower = serving_graph(model, tower_inputs(model.tower.names), [USER_VECTOR], settings)
    vectors, ids = model.vectors.detach().numpy(), model.vocabulary.keys.numpy()
    return with_index(tower, vectors, ids, index.k, index, settings)


def with_index(
    tower: ModelProto,
    vectors: np.ndarray,
    ids: np.ndarray,
    k: int,
    index: IndexSettings,
    settings: ExportSettings,
) -> ModelProto:
    """Put an index of the videos' vectors [N, D] with these ids [N] behind a tower that ends in `USER`."""
    search = build_index(
        vectors,
        ids,
        k=k,
        variant=index.variant,
        lists=index.lists,
        probes=index.probes,
        settings=settings,
    )
    _rename_input(search, WATCHED, f"index/{WATCHED}")
    merged = compose.merge_models(tower, search, [(USER, USER)])
    _rename_input(merged, f"index/{WATCHED}", WATCHED)  # the tower's own input of that name is the same
    onnx.checker.check_model(merged, full_check=True)
    return merged


def _rename_input(model: ModelProto, old: str, new: str) -> None:
    graph = model.graph
    taken = {value.name for value in graph.input}
    for value in list(graph.input):
        if value.name == old:
            graph.input.remove(value) if new in taken else setattr(value, "name", new)
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _cases(data: CandidateDataset, model: CandidateModel, rows: int) -> dict[str, Arrays]:
    test = data.split("test")
    batch = CandidateBatches(test, model.tower.names, 1).read(np.arange(min(rows, len(test["user_id"]))))
    real = {name: value.numpy() for name, value in batch.features.items()}
    return edge_cases(tower_inputs(model.tower.names), real)


@torch.no_grad()
def _parity(
    model: CandidateModel, graph: Path, cases: dict[str, Arrays], tolerance: float
) -> dict[str, float]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    keys, vectors = model.vocabulary.keys.numpy(), model.vectors.numpy()
    found: dict[str, float] = {}
    for name, x in cases.items():
        nothing = np.full((len(x[WATCHED]), 0), PAD_ID, dtype=np.int64)
        videos, scores = session.run([VIDEOS, SCORES], {**x, EXCLUDED: nothing})
        users = model({key: torch.from_numpy(value) for key, value in x.items()}).numpy()
        known = videos >= 0
        rows = np.searchsorted(keys, np.where(known, videos, keys[0]))
        expected = np.einsum("bd,bkd->bk", users, vectors[rows])
        scale = np.maximum(np.abs(expected), 1.0)
        difference = np.where(known, np.abs(scores - expected) / scale, 0.0)
        watched = (videos[:, :, None] == x[WATCHED][:, None, :]) & known[:, :, None]
        found[name] = float(difference.max(initial=0.0))
        if not found[name] <= tolerance or watched.any():
            raise ParityError(
                f"{graph.name} differs from the trained model by {found[name]:.2g} on {name!r}, or answers a "
                f"watched video; {tolerance:.2g} is allowed. Look for an operator that exports inexactly."
            )
    return found | {"recall": _recall(model, session, cases["real rows"])}


def _recall(model: CandidateModel, session: ort.InferenceSession, x: Arrays) -> float:
    """Return the share of the exact answers' videos, without the watched ones, that the graph finds."""
    sample = {name: value[:500] for name, value in x.items()}
    nothing = np.full((len(sample[WATCHED]), 0), PAD_ID, dtype=np.int64)
    (videos,) = session.run([VIDEOS], {**sample, EXCLUDED: nothing})
    users = model({key: torch.from_numpy(value) for key, value in sample.items()})
    scores = torch.nn.functional.pad(users @ model.vectors.T, (1, 0))
    scores.scatter_(1, model.vocabulary(torch.from_numpy(sample[WATCHED])), -torch.inf)
    best = scores[:, 1:].topk(min(videos.shape[1], scores.shape[1] - 1)).indices
    exact = model.vocabulary.keys[best].numpy()
    hits = [np.isin(right, answer).mean() for right, answer in zip(exact, videos, strict=True)]
    return float(np.mean(hits))
