"""The simulated workspace that the benchmarks share: built once, up to the ranking dataset."""

from pathlib import Path

from watchrank.config import Config
from watchrank.datasets.ranking import build_ranking_dataset
from watchrank.feature_store import open_store
from watchrank.features import build_features
from watchrank.ingestion import ingest
from watchrank.simulation import simulate_into
from watchrank.workspace import Workspace

ROOT = Path("work/benchmarks")
FEATURE_REPO = Path("feature_repo")


def simulated_workspace(impressions: int) -> Workspace:
    """Return a workspace with a dataset of about so many simulated impressions."""
    place = Workspace(ROOT / f"simulated-{impressions}")
    if not (place.dataset / "manifest.json").exists():
        config = Config.load(overrides=[f"simulation.impressions={impressions}"])
        simulate_into(place, config.simulation)
        ingest(place.log, "own", place.events, config.ingestion, config.engine)
        build_features(place.events, place.features, config.features, config.engine)
        store = open_store(FEATURE_REPO, place.features, place.feature_store)
        build_ranking_dataset(place.events, store, place.dataset, config.split)
    return place
