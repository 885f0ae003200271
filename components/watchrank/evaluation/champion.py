"""The champion: what the release that serves answers on the test window of a challenger."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.errors import DeploymentError, InputError
from watchrank.graphs import checked
from watchrank.schema import SCORE, WEIGHT

GRAPH = "ranking/model.onnx"
BATCH_ROWS = 8_192
Windows = Mapping[str, Mapping[str, str]]
DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A release's answers [N] to the impressions of a split, by output; none when it cannot be compared."""

    release: str
    tasks: frozenset[str] = frozenset()
    """The outputs that are tasks, whether there are answers or not."""
    answers: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What to know about the comparison, or why there is none."""


def ask_champion(release: Path, data: RankingDataset) -> Champion:
    """Let the ranker of a release answer the test window of a dataset.

    A release that is damaged, gone or reads other features than the dataset has cannot be compared: it has
    no answers, and a note that says why.

    Args:
        release: its folder.
        data: the challenger's dataset.
    """
    tasks: frozenset[str] = frozenset()
    try:
        manifest = checked(release)
        session = _session(release / GRAPH)
        outputs = [output.name for output in session.get_outputs()]
        tasks = frozenset(outputs) - {SCORE.name}
        answers = _answers(session, data.split("test"), data.absent_features)
    except (InputError, DeploymentError) as error:
        note = f"No comparable champion: {error}"
        return Champion(release=release.name, tasks=tasks, notes=(note,))
    return Champion(
        release=release.name,
        tasks=tasks,
        answers={name: answers[name] for name in sorted(tasks)},
        notes=_seen_before(manifest["data"], data.manifest["splits"]),
    )


def _session(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _answers(session: ort.InferenceSession, split: Split, absent: Collection[str]) -> dict[str, np.ndarray]:
    """Return each output [N] for the impressions of a split, in its order.

    Raises:
        InputError: the graph reads what the split does not have, or an answer is not finite.
    """
    names = [spec.name for spec in session.get_outputs()]
    weights = [spec.name for spec in session.get_inputs() if spec.name.endswith(WEIGHT)]
    features = [spec for spec in session.get_inputs() if spec.name not in weights]
    for spec in features:
        _check_input(spec, split, absent)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in RankingBatches(split, {spec.name for spec in features}, BATCH_ROWS).epoch():
        feed = {name: value.numpy() for name, value in batch.features.items()}
        feed |= {name: np.full((len(batch.shown), 1), np.nan, np.float32) for name in weights}
        shown = batch.shown.numpy() > 0
        for name, answer in zip(names, session.run(names, feed), strict=True):
            parts[name].append(answer[shown].astype(np.float64))
    answers = {name: np.concatenate(part) for name, part in parts.items()}
    if wrong := [name for name in names if not np.isfinite(answers[name]).all()]:
        raise InputError(f"its {wrong[0]} is not finite on the test window; look at the release.")
    return answers


def _check_input(spec: ort.NodeArg, split: Split, absent: Collection[str]) -> None:
    column = split.requests.get(spec.name, split.impressions.get(spec.name))
    if column is None or spec.name in absent:
        raise InputError(f"it reads the feature {spec.name}, which the dataset lacks.")
    width = spec.shape[1] if isinstance(spec.shape[1], int) else 1
    if column.dtype != DTYPES.get(spec.type) or (column.shape[1] if column.ndim == 2 else 1) != width:
        raise InputError(
            f"it reads the feature {spec.name} as {spec.type} of width {width}; "
            f"the dataset has {column.dtype}, {list(column.shape[1:]) or 1}."
        )


def _seen_before(learned_from: Windows, own: Windows) -> tuple[str, ...]:
    """Say so when the champion was trained on days of this test window, which are then not new to it."""
    learned = max(learned_from[name]["until"] or "" for name in ("train", "validation"))
    if learned < own["test"]["from"]:
        return ()
    return (f"The champion was trained on days up to {learned}, which is in this window: that favours it.",)
