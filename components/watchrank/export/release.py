"""Releases: one immutable, numbered folder that holds all that serves together."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd

from watchrank import __version__
from watchrank.config import ExportSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.errors import InputError
from watchrank.export.onnx import export_onnx
from watchrank.export.parity import Arrays, Parity, check_parity, edge_cases
from watchrank.export.triton_config import triton_config
from watchrank.models.ranking import ExpectedWatchTime, RankingModel
from watchrank.releases import MANIFEST, checksums, release_numbers
from watchrank.schema import PAD_ID, RANKING_INPUTS, RANKING_OUTPUTS, Tensor
from watchrank.storage import atomic_path, write_json
from watchrank.training.ranking import load_model

GOLDEN_REQUESTS = 4
GOLDEN_CANDIDATES = 8
POPULAR_VIDEOS = 500
MAX_BATCH_SIZE = 64


def export_release(
    model: Path, dataset: Path, metrics: dict[str, Any], releases: Path, settings: ExportSettings
) -> Path:
    """Export a trained model, check it, and make it the next release.

    Args:
        model: folder of `train_ranking`.
        dataset: the folder it was trained on; parity and the golden requests come from its last window.
        metrics: of the evaluation, kept in the manifest.
        releases: folder of all releases.
        settings: of the export.

    Returns:
        The folder of the new release, `releases/<number>`.

    Raises:
        ParityError: the graph answers differently from the model; no release is made.
    """
    ranker, data = load_model(model), RankingDataset.open(dataset)
    number = max(release_numbers(releases), default=0) + 1
    target = releases / f"{number:06d}"
    with atomic_path(target) as fresh:
        (fresh / "ranking").mkdir(parents=True)
        parity = _export_ranking(ranker, data, fresh / "ranking", settings)
        write_json(fresh / "popular.json", popular_videos(data.split("train")))
        manifest = {
            "release": number,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "code_version": __version__,
            "data": data.manifest["splits"],
            "metrics": metrics,
            "parity": parity.differences,
            "showcase_users": _active_users(data.split("test")),
            "files": checksums(fresh),
        }
        write_json(fresh / MANIFEST, manifest)
    return target


def ranking_inputs(model: RankingModel) -> list[Tensor]:
    """Return the inputs of a ranking model's graph: those of the schema that it reads."""
    return [spec for spec in RANKING_INPUTS if spec.name in model.inputs.input_names]


def ranking_config(inputs: Sequence[Tensor]) -> str:
    """Return Triton's configuration of the ranking model."""
    return triton_config("ranking", inputs, RANKING_OUTPUTS, max_batch_size=MAX_BATCH_SIZE)


def _export_ranking(
    ranker: RankingModel, data: RankingDataset, folder: Path, settings: ExportSettings
) -> Parity:
    inputs, head = ranking_inputs(ranker), ExpectedWatchTime(ranker).eval()
    graph = folder / "model.onnx"
    export_onnx(head, inputs, RANKING_OUTPUTS[0], graph, settings)
    rows = _last_rows(data, inputs, settings.parity_rows)
    golden = _as_slates(inputs, rows)
    cases = edge_cases(inputs, rows) | {"several candidates": golden}
    maximum = float(np.exp(ranker.max_logit))
    parity = check_parity(head, graph, cases, tolerance=settings.tolerance, maximum=maximum)
    (folder / "config.pbtxt").write_text(ranking_config(inputs), encoding="utf-8")
    write_json(folder / "golden.json", _golden(graph, golden, settings.tolerance))
    return parity


def _last_rows(data: RankingDataset, inputs: Sequence[Tensor], rows: int) -> Arrays:
    split = data.split("test")
    if len(split) < GOLDEN_REQUESTS * GOLDEN_CANDIDATES:
        raise InputError(
            f"The dataset {data.path} has only {len(split)} test rows: too few for golden requests."
        )
    names = {spec.name for spec in inputs}
    sample = np.random.default_rng(0).choice(len(split), min(rows, len(split)), replace=False)
    batch = RankingBatches(split, names, 1).read(sample)
    return {name: value.numpy() for name, value in batch.features.items()}


def _as_slates(inputs: Sequence[Tensor], rows: Arrays) -> Arrays:
    """Make requests with several candidates out of rows with one."""
    slates = {}
    for spec in inputs:
        column = rows[spec.name]
        if spec.dims == (-1,):
            slates[spec.name] = column[: GOLDEN_REQUESTS * GOLDEN_CANDIDATES].reshape(GOLDEN_REQUESTS, -1)
        else:
            slates[spec.name] = column[:GOLDEN_REQUESTS]
    return slates


def _golden(graph: Path, slates: Arrays, tolerance: float) -> dict[str, Any]:
    """Requests with their right answers, for the smoke test of a deployment."""
    answer = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, slates)[0]
    request = {
        "inputs": {name: column.tolist() for name, column in slates.items()},
        "outputs": {RANKING_OUTPUTS[0].name: answer.tolist()},
    }
    return {"tolerance": tolerance, "requests": [request]}


def _active_users(split: Split) -> list[int]:
    """A few users of the last window with many requests, to show what the release answers."""
    users, requests = np.unique(split.requests["user_id"], return_counts=True)
    active: list[int] = users[np.argsort(-requests, kind="stable")[:10]].tolist()
    return active


def popular_videos(train: Split) -> dict[str, list[int]]:
    """Return the videos of the most watch time in the training window, overall and by user language.

    Returns:
        Video ids, most watched first, under "all" and under the text id of each language.
    """
    frame = pd.DataFrame(
        {
            "video_id": train.impressions["video_id"],
            "seconds": train.impressions["watch_seconds"],
            "language": train.requests["user_language"][train.impressions["request"]],
        }
    )
    totals = frame.groupby(["language", "video_id"])["seconds"].sum().reset_index()
    popular = {"all": _most_watched(totals.groupby("video_id")["seconds"].sum().reset_index())}
    for language, group in totals[totals["language"] != PAD_ID].groupby("language"):
        popular[str(language)] = _most_watched(group)
    return popular


def _most_watched(totals: pd.DataFrame) -> list[int]:
    ids: list[int] = totals.sort_values("seconds", ascending=False)["video_id"].head(POPULAR_VIDEOS).tolist()
    return ids
