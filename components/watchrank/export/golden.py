"""Golden requests: real ones with the answers that a server must give before it serves a release."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from watchrank.config import ExportSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset
from watchrank.errors import InputError
from watchrank.export import recommend
from watchrank.export.parity import Arrays
from watchrank.export.sources import GENERATED, SEARCHED
from watchrank.schema import (
    CANDIDATES,
    EXCLUDED_VIDEO_IDS,
    EXPECTED_WATCH_TIME,
    PAD_ID,
    RANKING_INPUTS,
    RECOMMEND_INPUTS,
    WEIGHT,
    Tensor,
    score_weight,
)

GOLDEN_REQUESTS = 4
GOLDEN_CANDIDATES = 8
GOLDEN_K = 10

_INPUTS = (*RECOMMEND_INPUTS, *RANKING_INPUTS)


def last_rows(data: RankingDataset, inputs: Sequence[Tensor], rows: int) -> Arrays:
    """Return some rows of the test window, [B, *dims] with one candidate each; weights of tasks are NaN.

    Raises:
        InputError: the window has too few rows.
    """
    split = data.split("test")
    if len(split) < GOLDEN_REQUESTS * GOLDEN_CANDIDATES:
        raise InputError(
            f"The dataset {data.path} has only {len(split)} test rows: too few for golden requests."
        )
    weights = [spec.name for spec in inputs if spec.name.endswith(WEIGHT)]
    names = {spec.name for spec in inputs} - set(weights)
    sample = np.random.default_rng(0).choice(len(split), min(rows, len(split)), replace=False)
    batch = RankingBatches(split, names, 1).read(sample)
    rows_of = {name: value.numpy() for name, value in batch.features.items()}
    return rows_of | {name: np.full((len(sample), 1), np.nan, np.float32) for name in weights}


def as_slates(inputs: Sequence[Tensor], rows: Arrays) -> Arrays:
    """Make requests with several candidates out of rows with one."""
    slates = {}
    for spec in inputs:
        column = rows[spec.name]
        if spec.dims == (CANDIDATES,):
            slates[spec.name] = column[: GOLDEN_REQUESTS * GOLDEN_CANDIDATES].reshape(GOLDEN_REQUESTS, -1)
        else:
            slates[spec.name] = column[:GOLDEN_REQUESTS]
    return slates


def recommend_requests(data: RankingDataset, names: Sequence[str], rows: int) -> Arrays:
    """Return requests to `recommend` for the users of some of the last window's impressions.

    Args:
        data: the dataset of ranking.
        names: the inputs of `recommend`.
        rows: how many requests.
    """
    of_user = [spec for spec in RANKING_INPUTS if spec.name in names and spec.dims != (CANDIDATES,)]
    of_user += [score_weight(name.removesuffix(WEIGHT)) for name in names if name.endswith(WEIGHT)]
    settings = {
        "example_age": np.float32(0),
        EXCLUDED_VIDEO_IDS.name: PAD_ID,
        "k": GOLDEN_K,
        "diversity": np.float32(0),
        "channel_limit": 0,
    }
    own = {
        spec.name: np.full((rows, 1), settings[spec.name], spec.dtype)
        for spec in RECOMMEND_INPUTS
        if spec.name in settings and spec.name in names
    }
    return last_rows(data, of_user, rows) | own


def golden_requests(release: Path, data: RankingDataset, settings: ExportSettings) -> dict[str, Any]:
    """Requests with their right answers, for the smoke test of a deployment."""
    graphs = recommend.ReleaseGraphs(release)
    known = {spec.name: spec for spec in RANKING_INPUTS}
    inputs = [known.get(name) or score_weight(name.removesuffix(WEIGHT)) for name in graphs.inputs("ranking")]
    slates = as_slates(inputs, last_rows(data, inputs, GOLDEN_REQUESTS * GOLDEN_CANDIDATES))
    rows = recommend_requests(data, graphs.inputs(recommend.MODEL), 16 * GOLDEN_REQUESTS)
    clear = _clearest(graphs.run(recommend.MODEL, rows))
    rows = {name: value[clear] for name, value in rows.items()}
    of_sources = {
        model: {name: rows[name] for name in graphs.inputs(model)}
        for model in (GENERATED, SEARCHED)
        if model in graphs.models
    }
    asked = {**of_sources, "ranking": slates, recommend.MODEL: rows}
    requests = [_golden_request(graphs, model, request) for model, request in asked.items()]
    return {"tolerance": settings.tolerance, "requests": requests}


def answered_again(golden: dict[str, Any], release: Path) -> dict[str, Any]:
    """Return the golden requests of another release with the answers of this one."""
    graphs, kinds = recommend.ReleaseGraphs(release), {spec.name: spec.dtype for spec in _INPUTS}
    requests = []
    for request in golden["requests"]:
        arrays = {
            name: np.array(value, kinds.get(name, "float32")) for name, value in request["inputs"].items()
        }
        requests.append(_golden_request(graphs, request["model"], arrays))
    return golden | {"requests": requests}


def _golden_request(graphs: recommend.ReleaseGraphs, model: str, request: Arrays) -> dict[str, Any]:
    answer = graphs.run(model, request)
    if model in (GENERATED, SEARCHED):
        answer = {"scores": answer["scores"]}  # videos of about the same score may change places
    return {
        "model": model,
        "inputs": {name: column.tolist() for name, column in request.items()},
        "outputs": {name: column.tolist() for name, column in answer.items()},
    }


def _clearest(answer: dict[str, np.ndarray]) -> np.ndarray:
    """Return the few rows in whose answers neighbours differ most: another server must not swap them."""
    seconds = answer[EXPECTED_WATCH_TIME][:, :GOLDEN_K]
    gaps = -np.diff(seconds, axis=1) / np.maximum(seconds[:, :-1], 1e-3)
    order = np.argsort(-gaps.min(axis=1, initial=np.inf), kind="stable")
    return order[:GOLDEN_REQUESTS]
