"""What one training reads, writes and is set to, as a line of JSON that names it to other processes."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from watchrank.config import (
    CandidateSettings,
    CandidateTrainingSettings,
    RankingSettings,
    Settings,
    TextSettings,
    TextTrainingSettings,
    TrainingSettings,
)
from watchrank.training.fit import Epoch


class _Job(Settings):
    dataset: Path
    output: Path
    warm_start: Path | None = None

    @property
    def failure(self) -> Path:
        """The file beside `output` into which the first process that fails writes why."""
        return self.output.parent / f".{self.output.name}.failure"

    @property
    def key(self) -> str:
        """Name the run by its data and settings and by where its model goes."""
        return hashlib.sha256(f"{self.content} {self.dataset} {self.output}".encode()).hexdigest()[:12]

    @property
    def content(self) -> str:
        """Name the run by its data and settings alone, wherever they lie."""
        manifest = self.dataset / "manifest.json"
        content = self.model_dump_json(exclude={"dataset", "output"}).encode()
        content += manifest.read_bytes() if manifest.exists() else b""
        return hashlib.sha256(content).hexdigest()[:12]


class RankingJob(_Job):
    """A training of the ranker."""

    model: Literal["ranking"] = "ranking"
    settings: RankingSettings
    training: TrainingSettings

    def train(self) -> list[Epoch]:
        """Train in this process, with the others of its group if there are any."""
        from watchrank.training.ranking import train_ranking

        return train_ranking(self.dataset, self.output, self.settings, self.training, self.warm_start)


class CandidatesJob(_Job):
    """A training of candidate generation."""

    model: Literal["candidates"] = "candidates"
    settings: CandidateSettings
    training: CandidateTrainingSettings

    def train(self) -> list[Epoch]:
        """Train in this process, with the others of its group if there are any."""
        from watchrank.training.candidate_generation import train_candidates

        return train_candidates(self.dataset, self.output, self.settings, self.training, self.warm_start)


class TextJob(_Job):
    """A training of text matching."""

    model: Literal["text"] = "text"
    settings: TextSettings
    training: TextTrainingSettings

    def train(self) -> list[Epoch]:
        """Train in this process, with the others of its group if there are any."""
        from watchrank.training.text_matching import train_text

        return train_text(self.dataset, self.output, self.settings, self.training, self.warm_start)


TrainingJob = Annotated[RankingJob | CandidatesJob | TextJob, Field(discriminator="model")]
