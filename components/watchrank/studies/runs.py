"""Training runs of a study: each is made once, kept, and shared by the studies that need it."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import stats

from watchrank.config import Config
from watchrank.datasets.ranking import RankingDataset
from watchrank.evaluation.evaluate import predict
from watchrank.storage import atomic_path, write_json
from watchrank.training.fit import run_key
from watchrank.training.ranking import load_model, train_ranking
from watchrank.workspace import Workspace

Overrides = Mapping[str, Iterable[str]]
"""Variants of a study by name: the settings that each changes, as `section.key=value`."""


@dataclass(frozen=True)
class Run:
    """A trained model's answers on the test window, and what its training cost."""

    folder: Path

    @cached_property
    def predictions(self) -> np.ndarray:
        """Expected watch time [N] of the test impressions, in seconds."""
        found: np.ndarray = np.load(self.folder / "predictions.npy")
        return found

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The learning curve."""
        found: list[dict[str, float]] = json.loads((self.folder / "curve.json").read_text())
        return found


@dataclass(frozen=True)
class Runs:
    """The runs of a workspace: variants of a base configuration under several seeds."""

    place: Workspace
    overrides: tuple[str, ...]
    seeds: int

    def of(self, variants: Overrides) -> dict[str, list[Run]]:
        """Return the runs of each variant, one a seed; train those that are not there yet."""
        return {
            name: [
                self._run([*self.overrides, *changes, f"training.seed={seed}"]) for seed in range(self.seeds)
            ]
            for name, changes in variants.items()
        }

    def _run(self, overrides: list[str]) -> Run:
        config = Config.load(overrides=overrides)
        data = RankingDataset.open(self.place.dataset)
        key = run_key(data.manifest, config.ranking, config.training)[:16]
        folder = self.place.studies / "runs" / key
        if not folder.exists():
            with tempfile.TemporaryDirectory() as scratch, atomic_path(folder) as fresh:
                fresh.mkdir()
                model = Path(scratch) / "model"
                train_ranking(self.place.dataset, model, config.ranking, config.training)
                np.save(fresh / "predictions.npy", predict(load_model(model), data.split("test")))
                curve = json.loads((model / "learning_curve.json").read_text())
                write_json(fresh / "curve.json", curve)
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
        """Write mean and interval, both in the same format."""
        return f"{self.mean:{spec}} ± {self.half_width:{spec}}"
