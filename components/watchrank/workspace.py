"""Where things lie: the one layout of a workspace, for the command line and the pipelines alike."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """A folder that keeps what outlives a run, and what the single stages hand on."""

    root: Path

    @property
    def log(self) -> Path:
        """The simulated log, when none is given."""
        return self.root / "log"

    @property
    def truth(self) -> Path:
        """The simulated log's true expected watch times; only evaluation reads them."""
        return self.root / "truth"

    @property
    def simulation(self) -> Path:
        """The settings that the log was simulated with."""
        return self.root / "simulation.json"

    @property
    def events(self) -> Path:
        """What ingestion accepted, by day."""
        return self.root / "events"

    @property
    def validation(self) -> Path:
        """The validation report."""
        return self.root / "validation"

    @property
    def features(self) -> Path:
        """The feature tables: Feast's offline store."""
        return self.root / "features"

    @property
    def feature_store(self) -> Path:
        """Feast's registry and its local online store."""
        return self.root / "feature_store"

    @property
    def dataset(self) -> Path:
        """The ranking dataset."""
        return self.root / "dataset"

    @property
    def model(self) -> Path:
        """The trained ranking model."""
        return self.root / "model"

    @property
    def evaluation(self) -> Path:
        """Metrics and the report."""
        return self.root / "evaluation"

    @property
    def candidate_dataset(self) -> Path:
        """The examples of candidate generation."""
        return self.root / "candidate_dataset"

    @property
    def candidate_model(self) -> Path:
        """The trained candidate generation."""
        return self.root / "candidate_model"

    @property
    def candidate_evaluation(self) -> Path:
        """Metrics of candidate generation beside its baselines."""
        return self.root / "candidate_evaluation"

    @property
    def search_dataset(self) -> Path:
        """The examples of text matching."""
        return self.root / "search_dataset"

    @property
    def text_model(self) -> Path:
        """The trained text matching."""
        return self.root / "text_model"

    @property
    def text_evaluation(self) -> Path:
        """Metrics of text matching beside popularity."""
        return self.root / "text_evaluation"

    @property
    def drift(self) -> Path:
        """The drift report."""
        return self.root / "drift"

    @property
    def skew(self) -> Path:
        """The skew report."""
        return self.root / "skew"

    @property
    def studies(self) -> Path:
        """Tables and plots of the studies, and the runs behind them."""
        return self.root / "studies"

    @property
    def releases(self) -> Path:
        """All releases, by number."""
        return self.root / "releases"

    def release(self, number: int | None) -> Path | None:
        """One release; None for None."""
        return None if number is None else self.releases / f"{number:06d}"

    @property
    def pulled(self) -> Path:
        """The releases that were fetched from a release store and are loaded."""
        return self.root / "pulled"

    @property
    def model_repository(self) -> Path:
        """What Triton serves from."""
        return self.root / "model_repository"

    @property
    def triton(self) -> Path:
        """The local Triton's log and backends."""
        return self.root / "triton"

    @property
    def request_log(self) -> Path:
        """What was served to a share of the users, with its features."""
        return self.root / "request_log"

    @property
    def runs(self) -> Path:
        """Artifacts of local pipeline runs."""
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        """The reports of the last local pipeline run."""
        return self.root / "reports"
