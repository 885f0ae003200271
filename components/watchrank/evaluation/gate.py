"""The ranker's gate: the challenger against the champion, like with like.

A task is compared with the champion's output of the same name, on the same impressions: those of the test
window whose label is known. A task that the champion does not have, or whose champion cannot be compared,
must beat its baselines. `evaluation.comparisons` says when a comparison fails.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from watchrank.config import GateSettings, TaskSettings
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.errors import GateError
from watchrank.evaluation.baselines import global_mean, video_mean
from watchrank.evaluation.bootstrap import bootstrap
from watchrank.evaluation.champion import Champion, ask_champion
from watchrank.evaluation.comparisons import WHOLE, Check, Comparison, TaskAnswers, comparisons
from watchrank.evaluation.evaluate import predict_tasks
from watchrank.models.ranking import served_outputs
from watchrank.storage import atomic_path, write_json
from watchrank.training.ranking import load_model

SEED = 0

Segments = Mapping[str, np.ndarray]
"""Which impressions belong to a segment [N] bool, by its name."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether the challenger may be released, and why."""

    passed: bool
    forced: bool
    """It fails, and passes because the settings say so."""
    champion: str | None
    """The release that serves; None before the first."""
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What to know about the comparison."""

    @property
    def reasons(self) -> list[str]:
        """Why it fails; none when it does not."""
        return [check.reason for check in self.checks if not check.passed]

    @property
    def verdict(self) -> str:
        """The decision in a sentence."""
        verdict = "is forced to pass" if self.forced else "passes" if self.passed else "is refused"
        return (
            f"The challenger {verdict}; champion: {f'release {self.champion}' if self.champion else 'none'}."
        )

    def require(self) -> None:
        """Refuse the challenger when it did not pass.

        Raises:
            GateError: it did not; the reasons are named.
        """
        if not self.passed:
            raise GateError(
                f"The ranker does not pass its gate: {'; '.join(self.reasons)}. "
                "Train it better, or set gates.force; what serves serves on."
            )

    def write(self, folder: Path) -> None:
        """Write `gate.json` and `gate.md` to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "gate.json", asdict(self) | {"reasons": self.reasons})
        with atomic_path(folder / "gate.md") as fresh:
            fresh.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """Return the decision as a page with a table of the checks."""
        head = "task | segment | metric | better | challenger | against | its value | difference"
        columns = [*head.split(" | "), "tolerance", "verdict"]
        lines = [f"- {line}" for line in (*self.reasons, *self.notes)]
        return "\n".join(
            [
                self.verdict,
                *(["", *lines] if lines else []),
                "",
                f"| {' | '.join(columns)} |",
                f"|{' --- |' * len(columns)}",
                *(_table_row(check) for check in self.checks),
                "",
            ]
        )


def gate_ranking(
    model: Path, dataset: Path, champion: Path | None, output: Path, settings: GateSettings
) -> Decision:
    """Decide on a trained ranker by the test window, and write `gate.json` and `gate.md`.

    Args:
        model: folder of `train_ranking`.
        dataset: folder of `build_ranking_dataset`; its test window is not empty.
        champion: folder of the release that serves; None before the first.
        output: folder for the two files, beside what is there.
        settings: tolerances and bounds.

    Returns:
        The decision; `Decision.require` raises when the ranker is refused.
    """
    data, ranker = RankingDataset.open(dataset), load_model(model)
    train, test = data.split("train"), data.split("test")
    found = None if champion is None else ask_champion(champion, data)
    answers = predict_tasks(ranker, test)
    tasks = [
        _answers(task, spec.name, answers[task.name], found, train, test)
        for task, spec in zip(ranker.tasks, served_outputs(ranker.tasks), strict=False)
    ]
    users = test.requests["user_id"][test.impressions["request"]]
    decision = decide(tasks, users, segments_of(test, data.manifest.get("surfaces", {})), settings, found)
    decision.write(output)
    return decision


def decide(
    tasks: Sequence[TaskAnswers],
    users: np.ndarray,
    segments: Segments,
    settings: GateSettings,
    champion: Champion | None = None,
) -> Decision:
    """Decide on a challenger by its answers to N impressions.

    Args:
        tasks: of the challenger, with the champion's answers and the baselines'.
        users: user id of each impression [N].
        segments: whose answers must be good, too.
        settings: tolerances and bounds.
        champion: the release that serves; None before the first.
    """
    ids, user = np.unique(users, return_inverse=True)
    todo: list[Comparison] = []
    notes = list(champion.notes) if champion else ["There is no champion: this is the first release."]
    for task in (task for task in tasks if _fault(task) is None):
        least = settings.min_segment_impressions
        large = {name: rows for name, rows in segments.items() if np.sum(rows & task.known) >= least}
        todo += comparisons(task, user, len(ids), large)
        if small := ", ".join(sorted(segments.keys() - large.keys())):
            notes.append(f"{task.output}: below {least:,} impressions and not judged: {small}.")
    statistics = list(dict.fromkeys(each for comparison in todo for each in comparison.statistics))
    values, drawn = bootstrap(statistics, len(ids), settings.resamples, SEED)
    place = {each: column for column, each in enumerate(statistics)}
    checks = [fault for task in tasks if (fault := _fault(task)) is not None]
    for comparison in todo:
        own = [place[each] for each in comparison.statistics]
        checks.append(comparison.judge(values[own], drawn[:, own], settings))
    served = champion.tasks if champion else frozenset()
    for output in sorted(served - {task.output for task in tasks}):
        if settings.allow_fewer_tasks:
            notes.append(f"{output}: the champion serves it, the challenger does not.")
        else:
            checks.append(_failed(output, "the champion serves it, the challenger does not"))
    passed = all(check.passed for check in checks)
    return Decision(
        passed=passed or settings.force,
        forced=settings.force and not passed,
        champion=champion.release if champion else None,
        checks=tuple(checks),
        notes=tuple(notes),
    )


def segments_of(test: Split, surfaces: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the segments of a split: its surfaces, by name, and users without impressions in 7 days.

    What holds all impressions or none is no segment.
    """
    request = test.impressions["request"]
    surface, shown = test.requests["surface"], test.requests["user_impressions_7d"]
    found = {f"surface {name}": (surface == number)[request] for name, number in sorted(surfaces.items())}
    found["new users"] = (shown < 1)[request]
    return {name: rows for name, rows in found.items() if rows.any() and not rows.all()}


def _answers(
    task: TaskSettings,
    output: str,
    challenger: np.ndarray,
    champion: Champion | None,
    train: Split,
    test: Split,
) -> TaskAnswers:
    baselines = {"video mean": video_mean, "global mean": global_mean}
    return TaskAnswers(
        output=output,
        kind=task.kind,
        label=np.asarray(test.impressions[task.label], dtype=np.float64),
        challenger=challenger,
        champion=champion.answers.get(output) if champion else None,
        baselines={name: predict(train, test, task.label) for name, predict in baselines.items()},
    )


def _fault(task: TaskAnswers) -> Check | None:
    """Return why a task cannot be measured at all, or None."""
    if not task.known.any():
        return _failed(task.output, "no impression of the test window has its label")
    if not np.isfinite(task.challenger).all():
        return _failed(task.output, "the challenger's answers are not all finite")
    return None


def _failed(output: str, reason: str) -> Check:
    return Check(
        name=f"{output}/{WHOLE}/answers",
        task=output,
        metric="answers",
        segment=WHOLE,
        direction="within",
        against="what is served",
        passed=False,
        reason=f"{output}: {reason}",
    )


def _table_row(check: Check) -> str:
    interval = "" if check.low is None else f"{check.low:.4f} to {check.high:.4f}"
    spread = interval if check.difference is None else f"{check.difference:.4f} ({interval})"
    numbers = (check.challenger, check.reference, check.tolerance)
    challenger, reference, tolerance = ("" if value is None else f"{value:.4f}" for value in numbers)
    cells = (check.task, check.segment, check.metric, check.direction, challenger, check.against, reference)
    return f"| {' | '.join((*cells, spread, tolerance, 'pass' if check.passed else '**fail**'))} |"
