"""No release is made twice, and which one a run may start from does not depend on the run itself."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pytest

from watchrank.config import ExportSettings
from watchrank.datasets.candidates import CandidateDataset
from watchrank.deployment.model_repository import publish
from watchrank.export import video_features
from watchrank.export.release import export_release, refresh_release
from watchrank.releases import MANIFEST, find_release, read_manifest, release_numbers, verify
from watchrank.retraining import start
from watchrank.storage import write_json
from watchrank.training.candidate_generation import load_model as load_candidates
from watchrank.training.ranking import load_model, train_ranking


@pytest.fixture
def export(trained, models, released, tmp_path):
    """Return a function that exports into a folder where the release of `models` is number 1."""
    releases = tmp_path / "releases"
    shutil.copytree(released, releases / "000001")

    def run(made=models, settings=trained.config.export, taken=()):
        return export_release(made, trained.store, {}, releases, trained.config.index, settings, taken)

    return run


def test_the_same_is_not_made_twice_also_at_once(trained, models, tmp_path, monkeypatch):
    """One at a time can ask Feast in a process: it is asked before."""
    store, config, releases = trained.store, trained.config, tmp_path / "releases"
    videos = np.array(CandidateDataset.open(models.candidate_dataset).videos["video_id"])
    features = video_features.catalogue_features(store, videos, datetime.now(UTC))
    monkeypatch.setattr(video_features, "catalogue_features", lambda *_: features)
    monkeypatch.setattr("watchrank.export.release._write_graphs", lambda *_: time.sleep(0.05) or {})

    def run(seconds):
        metrics = {"seconds": seconds}
        return export_release(models, store, metrics, releases, config.index, config.export).name

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(run, range(4))} == {"000001"}
    assert release_numbers(releases) == [1]


def test_another_run_of_the_same_weights_is_the_same_release(export, trained, models, tmp_path):
    place, config = trained.place, trained.config
    train_ranking(place.dataset, tmp_path / "again", config.ranking, config.training)
    assert export(replace(models, ranking=tmp_path / "again")).name == "000001"


def test_a_release_of_other_features_settings_data_or_code_is_another_one(
    export, trained, models, monkeypatch, tmp_path
):
    monkeypatch.setattr("watchrank.export.release._write_graphs", lambda *_: {})
    assert export(settings=ExportSettings(tolerance=2e-4)).name == "000002"
    features = video_features.catalogue_features

    def clicked_more(*args):
        found = features(*args)
        return found | {"video_clicks_7d": found["video_clicks_7d"] + 1}

    with monkeypatch.context() as patch:
        patch.setattr(video_features, "catalogue_features", clicked_more)
        assert export().name == "000003"
    data = shutil.copytree(models.dataset, tmp_path / "dataset")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["test"]["checksum"] = "another"
    write_json(data / "manifest.json", manifest)
    assert export(replace(models, dataset=data)).name == "000004"
    with monkeypatch.context() as patch:
        patch.setattr("watchrank.export.made_of.code_checksum", lambda: "another")
        assert export().name == "000005"
    assert export().name == "000001"


def test_a_release_gets_no_number_that_is_taken_elsewhere(export, trained, monkeypatch):
    assert export(taken=[7]).name == "000001"  # it is there
    fresh = refresh_release(export(), trained.store, export().parent, ExportSettings(), taken=[3, 7])
    assert (fresh.name, read_manifest(fresh)["release"]) == ("000008", 8)
    monkeypatch.setattr("watchrank.export.release._write_graphs", lambda *_: {})
    assert export(settings=ExportSettings(tolerance=2e-4), taken=[3, 7, 11]).name == "000012"


def test_a_damaged_release_is_made_again(export, monkeypatch):
    monkeypatch.setattr("watchrank.export.release._write_graphs", lambda *_: {})
    (export() / "ranking" / "model.onnx").write_bytes(b"")
    assert export().name == "000002"


def test_a_warm_started_release_names_the_one_it_started_from(export, trained, models, tmp_path, monkeypatch):
    monkeypatch.setattr("watchrank.export.release._write_graphs", lambda *_: {})
    first = export()
    assert read_manifest(first)["warm_started_from"] is None
    place, config = trained.place, trained.config
    training = config.training.model_copy(update={"epochs": 1})
    kept = first / "training" / "ranking"
    train_ranking(place.dataset, tmp_path / "warm", config.ranking, training, kept)
    found = verify(export(replace(models, ranking=tmp_path / "warm")))
    assert found["warm_started_from"] == 1
    assert found["until"] == "2026-01-08"


def test_a_release_and_its_refreshed_one_keep_models_to_start_from_that_triton_is_not_given(
    released, trained, tmp_path
):
    release = shutil.copytree(released, tmp_path / "releases" / "000001")
    fresh = refresh_release(release, trained.store, tmp_path / "releases", ExportSettings())
    for folder in (release, fresh):
        assert load_model(folder / "training" / "ranking").kind == "ranking"
        assert len(load_candidates(folder / "training" / "candidate_generation").vectors)
        publish(folder, int(folder.name), tmp_path / "repository")
    assert not [path for path in (tmp_path / "repository").rglob("*") if "training" in path.name]
    assert read_manifest(fresh)["made_of"] == read_manifest(release)["made_of"], "of the same features"


@pytest.fixture
def releases(tmp_path):
    """Releases by number: the last day of their window, and the one that they started from."""
    for number, (day, origin) in {
        1: (8, None),
        2: (9, 1),
        3: (10, 2),
        4: (10, None),
        5: (None, None),
    }.items():
        values = {
            "release": number,
            "files": {},
            "endpoints": [],
            "made_of": {"number": number},
            "warm_started_from": origin,
        }
        (tmp_path / f"{number:06d}").mkdir()
        until = {"until": str(date(2026, 1, day))} if day else {}
        write_json(tmp_path / f"{number:06d}" / MANIFEST, values | until)
    return tmp_path


@pytest.mark.parametrize(
    ("champion", "day", "expected"),
    [
        (3, 11, 3),  # what serves is older
        (3, 10, 2),  # the run of that day again: from what it started from
        (3, 9, 1),
        (3, 8, None),
        (2, 11, 2),  # 3 was rolled back
        (4, 10, None),  # it started from nothing
        (5, 11, None),  # it does not say what it has seen
        (9, 11, None),  # it is gone
    ],
)
def test_a_run_starts_from_what_serves_or_what_that_came_from(releases, champion, day, expected):
    found = start(releases / f"{champion:06d}", date(2026, 1, day))
    assert found == (releases / f"{expected:06d}" if expected else None)


def test_the_first_run_starts_from_nothing():
    assert start(None, date(2026, 1, 1)) is None


def test_a_release_is_found_by_what_it_was_made_of(releases):
    assert find_release(releases, {"number": 3}) == releases / "000003"
    assert find_release(releases, {"number": 6}) is None
