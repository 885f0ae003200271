"""What studies share: training runs, each made once and kept, means over seeds, and the page."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from watchrank.config import Config
from watchrank.datasets.ranking import RankingDataset
from watchrank.evaluation.evaluate import predict
from watchrank.evaluation.page import write_page
from watchrank.storage import atomic_path, write_json
from watchrank.training.fit import run_key
from watchrank.training.ranking import load_model, train_ranking
from watchrank.workspace import Workspace

Overrides = Mapping[str, Iterable[str]]
"""Variants of a study by name: the settings that each changes, as `section.key=value`."""

Row = dict[str, str]


@dataclass(frozen=True)
class Run:
    """What is kept of a training: the ranker's answers on the test window, or figures; and its cost."""

    folder: Path

    @cached_property
    def predictions(self) -> np.ndarray:
        """Expected watch time [N] of the test impressions, in seconds."""
        found: np.ndarray = np.load(self.folder / "predictions.npy")
        return found

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The learning curve."""
        found: list[dict[str, float]] = self.read("curve")
        return found

    def read(self, name: str) -> Any:
        """Return what the file `<name>.json` of the run holds."""
        return json.loads((self.folder / f"{name}.json").read_text())


@dataclass(frozen=True)
class Task:
    """What a study trains: the ranker, or candidate generation."""

    section: str
    """The settings of its training, which hold the seed."""

    key: Callable[[Workspace, Config], str]
    """Names a run by its data and its settings."""

    train: Callable[[Workspace, Config, Path], None]
    """Trains, and writes what is kept of the run to an empty folder."""


def _ranking_key(place: Workspace, config: Config) -> str:
    return run_key(RankingDataset.open(place.dataset).manifest, config.ranking, config.training)


def _train_ranking(place: Workspace, config: Config, folder: Path) -> None:
    test = RankingDataset.open(place.dataset).split("test")
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        train_ranking(place.dataset, model, config.ranking, config.training)
        np.save(folder / "predictions.npy", predict(load_model(model), test))
        write_json(folder / "curve.json", json.loads((model / "learning_curve.json").read_text()))


RANKING = Task("training", _ranking_key, _train_ranking)


@dataclass(frozen=True)
class Runs:
    """The runs of a workspace: variants of a base configuration under several seeds."""

    place: Workspace
    overrides: tuple[str, ...]
    seeds: int

    def of(self, variants: Overrides, task: Task = RANKING) -> dict[str, list[Run]]:
        """Return the runs of each variant, one a seed; train those that are not there yet."""
        return {
            name: [
                self._run(task, [*self.overrides, *changes, f"{task.section}.seed={seed}"])
                for seed in range(self.seeds)
            ]
            for name, changes in variants.items()
        }

    @property
    def note(self) -> str:
        """Say what the figures of a study are."""
        settings = f", with {' '.join(self.overrides)}" if self.overrides else ""
        if self.seeds == 1:
            return f"One seed of the training{settings}: how much seeds differ is not known."
        return f"Mean over {self.seeds} seeds of the training{settings}, ± half its 95 % confidence interval."

    def _run(self, task: Task, overrides: list[str]) -> Run:
        config = Config.load(overrides=overrides)
        folder = self.place.studies / "runs" / task.key(self.place, config)[:16]
        if not folder.exists():
            with atomic_path(folder) as fresh:
                fresh.mkdir()
                task.train(self.place, config, fresh)
        return Run(folder)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """Estimate from one value a seed; of one seed the interval is unknown (NaN)."""
        found = np.array(list(values))
        spread = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        return cls(float(found.mean()), float(spread * stats.t.ppf(0.975, max(len(found) - 1, 1))))

    def __format__(self, spec: str) -> str:
        """Write mean and interval, where it is known, both in the same format."""
        interval = "" if np.isnan(self.half_width) else f" ± {self.half_width:{spec}}"
        return f"{self.mean:{spec}}{interval}"


@dataclass(frozen=True)
class Study:
    """What a study found: a table with its explanation, and plots."""

    title: str
    lead: str
    rows: list[Row]
    note: str
    plots: list[str]

    def write(self, runs: Runs, name: str) -> None:
        """Write `<workspace>/studies/<name>.html` and `.json`."""
        folder = runs.place.studies
        columns = list(self.rows[0])
        write_json(folder / f"{name}.json", {"title": self.title, "note": self.note, "rows": self.rows})
        write_page(
            folder / f"{name}.html",
            "study.html.j2",
            title=self.title,
            lead=self.lead,
            columns=columns,
            rows=self.rows,
            note=self.note,
            plots=self.plots,
        )
