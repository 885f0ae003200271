"""While a stage reads what another one wrote, nobody writes it: what is read is of one state."""

import fcntl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from watchrank.config import Config
from watchrank.datasets.candidates import build_candidate_dataset
from watchrank.datasets.ranking import build_ranking_dataset
from watchrank.datasets.searches import build_search_dataset
from watchrank.export.release import Trained, export_release
from watchrank.feature_store import materialise
from watchrank.features import build_features
from watchrank.validation import validate
from watchrank.workspace import Workspace

CONFIG = Config()


class StopError(Exception):
    """Ends a stage in the middle."""


def is_held(folder: Path) -> bool:
    """Tell whether a writer of the folder would have to wait."""
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def features(place, store, output):
    build_features(place.events, output, CONFIG.features, CONFIG.engine)


def checks(place, store, output):
    validate(place.events, output, CONFIG.validation)


def dataset(place, store, output):
    build_ranking_dataset(place.events, store, output, CONFIG.split)


def candidate_dataset(place, store, output):
    build_candidate_dataset(place.events, store, output, CONFIG.examples)


def search_dataset(place, store, output):
    build_search_dataset(place.events, output, CONFIG.text, CONFIG.split)


def online(place, store, output):
    materialise(store, datetime.now(UTC))


def release(place, store, output):
    models = Trained(
        ranking=place.model,
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
    )
    export_release(models, store, {}, output, CONFIG.index, CONFIG.export)


STAGES = {
    # stage: where it is in the middle of its work, and what it reads
    features: ("watchrank.features.build._statistics", ["events"]),
    checks: ("watchrank.validation.run._run_suites", ["events"]),
    dataset: ("watchrank.datasets.ranking._write_split", ["events", "features"]),
    candidate_dataset: ("watchrank.datasets.candidates._write_profiles", ["events", "features"]),
    search_dataset: ("watchrank.datasets.searches._write_texts", ["events"]),
    online: ("feast.FeatureStore.materialize", ["features"]),
    release: (
        "watchrank.export.release.load_ranking_model",
        ["model", "dataset", "candidate_model", "candidate_dataset"],
    ),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_what_a_stage_reads_is_held_while_it_runs(stage, prepared, tmp_path, monkeypatch):
    place: Workspace = prepared.place
    middle, read = STAGES[stage]
    held = {}

    def stop(*arguments, **options):
        held.update({name: is_held(getattr(place, name)) for name in read})
        raise StopError

    monkeypatch.setattr(middle, stop)
    with pytest.raises(StopError):
        stage(place, prepared.store, tmp_path / "output")
    assert held == dict.fromkeys(read, True)
    assert not any(is_held(getattr(place, name)) for name in read)
