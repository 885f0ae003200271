import json
import shutil

import numpy as np
import pytest
import torch

from watchrank.config import CandidateSettings, CandidateTrainingSettings, ExampleSettings
from watchrank.datasets.candidates import CandidateDataset, build_candidate_dataset
from watchrank.errors import InputError
from watchrank.models.candidate_generation import ID_DOMAINS, NEEDED
from watchrank.storage import write_json
from watchrank.studies import candidates
from watchrank.studies.candidates import CANDIDATES, STUDIES
from watchrank.studies.example_age import Timeline, by_day, probabilities
from watchrank.studies.runs import Runs
from watchrank.training.candidate_generation import new_loss, new_model
from watchrank.workspace import Workspace

SMALL = ("candidates.dim=8", "candidates.feature_dim=4", "candidate_training.epochs=1")
HOUR = 3_600
END = 1_000_000_000


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory) -> Runs:
    """One seed of a small model."""
    place = Workspace(tmp_path_factory.mktemp("studies"))
    build_candidate_dataset(prepared.place.events, prepared.store, place.candidate_dataset, ExampleSettings())
    return Runs(place, SMALL, seeds=1)


@pytest.fixture
def poor(runs, tmp_path) -> Runs:
    """The same without times of upload and without searches."""
    place = Workspace(tmp_path)
    shutil.copytree(runs.place.candidate_dataset, place.candidate_dataset)
    manifest = place.candidate_dataset / "manifest.json"
    values = json.loads(manifest.read_text()) | {"absent_features": ["search_token_ids", "upload_time"]}
    manifest.write_text(json.dumps(values))
    return Runs(place, SMALL, seeds=1)


@pytest.fixture
def window(tmp_path) -> CandidateDataset:
    """Videos 7 and 8, uploaded 47 and 13 hours before the end of a window of 60 hours; 9 is older."""
    examples = {60: [9, 9], 36: [7, 9, 9, 9], 12: [7, 8, 8, 9], 0: [8]}
    labels = np.concatenate(list(examples.values()))
    hours = np.repeat(list(examples), [len(videos) for videos in examples.values()])
    history = np.full((len(labels), 50), -1)
    uploads = END - HOUR * np.array([47, 13, 24 * 30])
    tables = {
        "train": {
            "user_id": labels,
            "video_id": labels,
            "now": END - HOUR * hours,
            "watched_video_ids": history,
        },
        "videos": {"video_id": np.array([7, 8, 9, 10]), "upload_time": np.append(uploads, -1)},
        "watches": {"video_id": labels},
    }
    for table, columns in tables.items():
        (tmp_path / table).mkdir()
        for name, values in columns.items():
            np.save(tmp_path / table / f"{name}.npy", values)
    write_json(tmp_path / "manifest.json", {"absent_features": [], "end_seconds": END})
    return CandidateDataset.open(tmp_path)


def test_shares_by_days_since_upload_are_those_counted_by_hand(window):
    line = Timeline.of(window)
    assert line.video_ids.tolist() == [7, 8]
    assert (line.slot_ages / HOUR).tolist() == [1.5, 13.5, 37.5, 61.5]
    assert line.shares().tolist() == [[0, 0.25, 0.25, 0], [1, 0.5, 0, 0]]
    assert line.days.tolist() == [[1, 1, 0, -1], [0, 0, -1, -2]]
    assert by_day(line.days, line.shares()) == pytest.approx({-2: 0, -1: 0, 0: 1.75 / 3, 1: 0.125})


def test_a_day_that_few_videos_are_seen_at_is_left_out():
    days = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert by_day(days, np.ones((5, 3))) == {0: 1}


def test_the_curves_users_are_the_slots_or_the_same_in_every_slot(window):
    line = Timeline.of(window)
    moment = line.users_of_the_moment()
    assert [sorted(rows) for rows in moment] == [[10], [6, 7, 8, 9], [2, 3, 4, 5], [0, 1]]
    assert all(sorted(rows) == list(range(11)) for rows in line.users_of_any_time())


def test_a_models_probability_is_the_softmax_at_the_moment_of_the_slot(window):
    """A model made by hand: the score of video 7 is the example age as a share of the window, others' 0."""
    line, others = Timeline.of(window), {*ID_DOMAINS.values(), "age"} - NEEDED
    settings = CandidateSettings(depth=0, dim=2, recent=0, exclude=tuple(others))
    model = new_model(window, settings)
    with torch.no_grad():
        model.tower.layers[-1].weight.zero_()[0, 2] = 1
        model.tower.layers[-1].bias.zero_()
        model.weights.weight.zero_()[1, 0] = 1
    task = new_loss(model, window, CandidateTrainingSettings())
    own = np.exp(np.array([1.5, 13.5, 37.5, 60]) / 60)
    expected = np.array([own, np.ones(4)]) / (own + 2)
    for users in (line.users_of_the_moment(), line.users_of_any_time()):
        assert probabilities(task, window, line, users) == pytest.approx(expected, rel=1e-5)


def test_depth_has_a_row_for_each_feature_set_and_depth_and_trains_once(runs, monkeypatch):
    study = STUDIES["depth"](runs)
    study.write(runs, "depth")
    rows = json.loads((runs.place.studies / "depth.json").read_text())["rows"]
    names = ["watches only", "+ searches", "+ example age", "all"]
    assert [(row["features"], row["hidden layers"]) for row in rows] == [
        (name, str(level)) for name in names for level in range(5)
    ]
    assert all(0 < float(row["MAP ↑"].split()[0]) < 1 for row in rows)
    assert len({row["MAP ↑"] for row in rows}) == 20
    assert (runs.place.studies / "depth.html").read_text().count("<svg") == 2
    monkeypatch.setattr(candidates, "fit_candidates", None)
    assert STUDIES["depth"](runs) == study


def test_the_example_age_moves_only_the_model_that_has_it(runs):
    *rows, off = STUDIES["example_age"](runs).rows
    assert all(float(off[name]) > 0 for name in list(off)[2:])
    days = [int(row["days since upload"]) for row in rows]
    assert days == list(range(days[0], days[-1] + 1))
    assert days[0] < 0 < days[-1]
    assert [float(row["examples"]) > 0 for row in rows] == [day >= 0 for day in days]
    data = CandidateDataset.open(runs.place.candidate_dataset)
    (found,) = runs.of({"without": ["candidates.exclude=[example_age]"]}, CANDIDATES)["without"]
    line = Timeline.of(data)
    task, _ = candidates.fit_candidates(
        data,
        CandidateSettings(dim=8, feature_dim=4, exclude=("example_age",)),
        CandidateTrainingSettings(epochs=1),
        runs.place.root / "checkpoint",
    )
    swept = probabilities(task.cpu(), data, line, line.users_of_any_time())
    assert np.ptp(swept, axis=1).max() < 1e-7
    kept = {int(day): value for day, value in found.read("days")["any time"].items()}
    assert kept == pytest.approx(by_day(line.days, swept))


def test_tied_embeddings_have_one_table_less(runs):
    untied, tied = STUDIES["tied"](runs).rows
    data = CandidateDataset.open(runs.place.candidate_dataset)
    classes = len(np.unique(data.watches["video_id"]))
    saved = int(untied["parameters"].replace(",", "")) - int(tied["parameters"].replace(",", ""))
    assert saved == 8 * (classes + 1)
    assert untied["MAP ↑"] != tied["MAP ↑"]
    assert float(tied["seconds an epoch"]) >= 0


def test_without_times_of_upload_there_is_no_study_of_the_example_age(poor):
    with pytest.raises(InputError, match="upload_time"):
        STUDIES["example_age"](poor)
    (run,) = poor.of({"default": []}, CANDIDATES)["default"]
    assert {path.name for path in run.folder.iterdir()} == {"metrics.json", "curve.json"}


def test_a_feature_set_that_the_source_cannot_give_is_left_out(poor):
    sets = candidates._feature_sets(poor)
    assert list(sets) == ["watches only", "+ example age", "all"]
    assert sets["all"] == frozenset()
    assert "example_age" in sets["watches only"] - sets["+ example age"]
