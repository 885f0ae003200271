"""Parity: the exported graph must answer as the trained model does, on real rows and at the edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from watchrank.errors import ParityError
from watchrank.schema import PAD_ID, Tensor

Arrays = dict[str, np.ndarray]

UNSEEN_ID = 2**62
LAST_SECOND = 2**62
SMALLEST_SECONDS = 1e-3
"""Below this, differences are taken as absolute: relative ones mean nothing there."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the exported graph is from the model, by case: the largest relative difference."""

    differences: dict[str, float]
    tolerance: float


def check_parity(
    module: nn.Module, onnx_file: Path, cases: dict[str, Arrays], *, tolerance: float, maxima: Sequence[float]
) -> Parity:
    """Compare `module` with the graph in `onnx_file` on every case.

    Args:
        module: maps a dict of features to one tensor or a tuple, in evaluation mode, on the CPU.
        onnx_file: its export.
        cases: inputs by case.
        tolerance: largest relative difference allowed.
        maxima: what each output may not exceed, up or down; all must be finite.

    Raises:
        ParityError: a case differs by more, or an answer is not finite or exceeds its maximum.
    """
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    differences = {}
    for name, inputs in cases.items():
        with torch.no_grad():
            expected = module({key: torch.from_numpy(value) for key, value in inputs.items()})
        expected = (expected,) if isinstance(expected, torch.Tensor) else expected
        differences[name] = 0.0
        for answer, right, maximum in zip(session.run(None, inputs), expected, maxima, strict=True):
            if not (np.isfinite(answer).all() and (np.abs(answer) <= maximum * (1 + tolerance)).all()):
                raise ParityError(
                    f"{onnx_file.name} answers {name!r} with a value that is not finite or above {maximum:g}."
                )
            scale = np.maximum(np.abs(right.numpy()), SMALLEST_SECONDS)
            largest = float(np.max(np.abs(answer - right.numpy()) / scale, initial=0.0))
            differences[name] = max(differences[name], largest)
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > tolerance:
        raise ParityError(
            f"{onnx_file.name} differs from the trained model by {differences[worst]:.2g} (relative) "
            f"on {worst!r}, more than {tolerance:.2g} allows. Look for an operator that exports inexactly."
        )
    return Parity(differences=differences, tolerance=tolerance)


def edge_cases(inputs: Sequence[Tensor], rows: Arrays) -> dict[str, Arrays]:
    """Return the cases that break graphs: the real rows, and what serving meets at the edges.

    Args:
        inputs: the graph's inputs.
        rows: real features, [B, *dims].
    """
    lists = [spec for spec in inputs if spec.dims[0] > 1]
    integers = [spec.name for spec in inputs if spec.dtype == "int64"]
    floats = [spec.name for spec in inputs if spec.dtype == "float32"]
    ids = [name for name in integers if name.endswith(("_id", "_ids"))]
    times = [name for name in integers if name.endswith(("_time", "_times")) or name == "now"]
    cases = {
        "real rows": rows,
        "one row": {name: value[:1] for name, value in rows.items()},
        "empty history": _with(rows, [s.name for s in lists if s.dtype == "int64"], PAD_ID),
        "unseen ids": _with(rows, ids, UNSEEN_ID),
        "nothing known": _with(_with(rows, integers, PAD_ID), floats, np.nan),
        "latest times": _with(rows, times, LAST_SECOND),
        "largest integers": _with(rows, integers, np.iinfo(np.int64).max),
    }
    for value in (np.inf, -np.inf, 1e30, -1e30, 0.0):
        cases[f"numbers are {value:g}"] = _with(rows, floats, value)
    return cases


def _with(rows: Arrays, names: Sequence[str], value: float) -> Arrays:
    return {name: np.full_like(column, value) if name in names else column for name, column in rows.items()}
