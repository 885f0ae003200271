"""The towers of text matching as ONNX graphs: n-gram ids of any number of texts and of any length in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from watchrank.config import ExportSettings
from watchrank.errors import ParityError
from watchrank.export.onnx import export_onnx
from watchrank.export.parity import UNSEEN_ID, Arrays
from watchrank.models.text.two_towers import QUERY, TITLE, TextMatch
from watchrank.schema import PAD_ID, Tensor
from watchrank.storage import atomic_path

VECTOR = "text_vector"


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
