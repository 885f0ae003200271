from datetime import UTC, datetime

import ibis
import numpy as np
import pandas as pd
import pytest
import torch

from watchrank.config import (
    CandidateSettings,
    CandidateTrainingSettings,
    EngineSettings,
    ExampleSettings,
    GateSettings,
)
from watchrank.datasets.candidates import CandidateDataset, build_candidate_dataset, with_lists_before
from watchrank.engine import connect
from watchrank.errors import GateError, InputError
from watchrank.evaluation.candidates import check_gates, evaluate_candidates
from watchrank.events import impressions
from watchrank.feature_store import open_store
from watchrank.training.candidate_generation import (
    CandidateBatches,
    load_model,
    new_model,
    train_candidates,
)

SETTINGS = CandidateSettings(dim=16, feature_dim=4)
TRAINING = CandidateTrainingSettings(epochs=2, batch_size=128)


@pytest.fixture(scope="module")
def dataset(prepared, tmp_path_factory) -> CandidateDataset:
    folder = tmp_path_factory.mktemp("candidates") / "dataset"
    build_candidate_dataset(prepared.place.events, prepared.store, folder, ExampleSettings())
    return CandidateDataset.open(folder)


@pytest.fixture(scope="module")
def clicks(prepared) -> pd.DataFrame:
    con = connect(EngineSettings())
    rows = impressions(con, prepared.place.events)
    frame = rows.filter(rows.clicked).select("user_id", "video_id", "timestamp").to_pyarrow().to_pandas()
    con.disconnect()
    frame["now"] = frame["timestamp"].astype("int64") // 1_000_000
    return frame.sort_values(["user_id", "timestamp"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_inputs_are_what_the_user_opened_before_the_watch_newest_first(dataset, clicks, split):
    examples = dataset.split(split)
    assert len(examples["now"]) > 50
    assert (np.diff(examples["now"]) >= 0).all()
    for place in range(0, len(examples["now"]), 7):
        of_user = clicks[clicks["user_id"] == examples["user_id"][place]]
        (watch,) = of_user[of_user["video_id"] == examples["video_id"][place]].head(1).itertuples()
        assert watch.now == examples["now"][place]
        before = of_user[of_user["timestamp"] < watch.timestamp]["video_id"].tolist()[::-1][:50]
        assert examples["watched_video_ids"][place].tolist() == before + [-1] * (50 - len(before))


def test_held_out_watches_are_not_learned_from(dataset):
    learned = set(zip(dataset.watches["user_id"].tolist(), dataset.watches["video_id"].tolist(), strict=True))
    for split in ("validation", "test"):
        examples = dataset.split(split)
        held_out = zip(examples["user_id"].tolist(), examples["video_id"].tolist(), strict=True)
        assert not learned & set(held_out)
    assert len(set(dataset.split("test")["user_id"].tolist())) == len(dataset.split("test")["user_id"])


def test_earlier_watches_know_those_of_a_lower_place():
    watches = pd.DataFrame(
        {"user_id": [1] * 60 + [1, 2], "place": [*range(60), -1, 0], "video_id": [*range(100, 160), 7, 5]}
    )
    found = with_lists_before(ibis.memtable(watches)).to_pandas().set_index("video_id")["before"]
    assert found[102] == [101, 100]
    assert found[159] == list(range(158, 108, -1))
    assert all(found[video] is None for video in (100, 7, 5))


def test_the_example_age_counts_to_the_end_of_the_training_window_and_is_0_when_not_trained_on(dataset):
    train, end = dataset.split("train"), dataset.manifest["end_seconds"]
    aged = CandidateBatches(train, ["example_age"], 64, end_seconds=end).read(np.array([0, 5]))
    assert aged.features["example_age"].flatten().tolist() == (end - train["now"][[0, 5]]).tolist()
    assert train["now"].max() == end
    fresh = CandidateBatches(train, ["example_age"], 64).read(np.array([0, 5]))
    assert fresh.features["example_age"].tolist() == [[0.0], [0.0]]


def test_an_epoch_holds_every_example_once_in_an_order_that_seed_and_epoch_decide(dataset):
    batches = CandidateBatches(dataset.split("train"), ["watched_video_ids"], 100, seed=3)
    parts = [part.labels["video_id"].flatten() for part in batches.epoch(1)]
    assert len(parts) == len(batches)
    assert sorted(torch.cat(parts).tolist()) == sorted(dataset.split("train")["video_id"].tolist())
    assert torch.equal(parts[2], next(batches.epoch(1, skip=2)).labels["video_id"].flatten())
    assert not torch.equal(parts[0], next(batches.epoch(2)).labels["video_id"].flatten())


@pytest.mark.parametrize("loss", ["full", "sampled", "in_batch"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_model_is_better_than_a_new_one_and_reads_back_as_it_was(dataset, tmp_path, loss, tied):
    settings = SETTINGS.model_copy(update={"tied": tied})
    training = TRAINING.model_copy(update={"loss": loss, "negatives": 100})
    curve = train_candidates(dataset.path, tmp_path / "model", settings, training)
    assert curve[-1].validation_loss < np.log(len(new_model(dataset, settings).vocabulary.keys))
    again = train_candidates(dataset.path, tmp_path / "again", settings, training)
    assert [line.train_loss for line in again] == [line.train_loss for line in curve]
    first, second = load_model(tmp_path / "model"), load_model(tmp_path / "again")
    assert (first.weights is first.tower.embedding("video").table) is tied
    x = CandidateBatches(dataset.split("test"), first.tower.names, 8).read(np.arange(8)).features
    assert torch.equal(first(x), second(x))
    assert first.vectors.shape == (len(first.vocabulary.keys), 16)


def test_features_can_be_left_out_and_what_cannot_is_refused(dataset):
    exclude = ("example_age", "age", "search_token_ids", "country")
    model = new_model(dataset, SETTINGS.model_copy(update={"exclude": exclude}))
    assert not set(exclude) & set(model.tower.names)
    with pytest.raises(InputError, match="exclude names watched_video_ids; it may name age"):
        new_model(dataset, SETTINGS.model_copy(update={"exclude": ("watched_video_ids",)}))


def test_the_two_level_softmax_cannot_be_served(dataset, tmp_path):
    with pytest.raises(InputError, match="cannot be served"):
        train_candidates(dataset.path, tmp_path, SETTINGS, TRAINING.model_copy(update={"loss": "two_level"}))


def test_evaluation_stands_beside_the_baselines_and_the_gate_names_what_is_not_beaten(dataset, tmp_path):
    train_candidates(dataset.path, tmp_path / "model", SETTINGS, TRAINING)
    results = evaluate_candidates(tmp_path / "model", dataset.path, tmp_path / "evaluation")
    assert results["models"].keys() == {"tower", "popularity", "segment_popularity", "last_items_knn"}
    assert (tmp_path / "evaluation" / "metrics.json").exists()
    nothing = (dataset.split("test")["watched_video_ids"] == -1).all(axis=1)
    assert 0 < results["newcomers"]["users"] == nothing.sum() < len(nothing)
    of_newcomers = results["newcomers"]["models"]["tower"]["recall@100"]
    assert of_newcomers * nothing.sum() == pytest.approx(round(of_newcomers * nothing.sum()))
    better = {"recall@100": 0.9, "map": 0.9}
    check_gates({"models": results["models"] | {"tower": better}}, GateSettings())
    with pytest.raises(GateError, match=r"map 0\.0000 against last_items_knn"):
        check_gates({"models": results["models"] | {"tower": better | {"map": 0.0}}}, GateSettings())


def test_a_log_without_a_watch_that_counts_is_an_input_error(make_features, shown, repository, tmp_path):
    events, features = make_features([shown(1, 7, datetime(2026, 1, 10, tzinfo=UTC), 1.0)])
    store = open_store(repository / "feature_repo", features, tmp_path / "state")
    for positive, sentence in (("completed", "no watch that is completed"), ("long_view", "no long_view")):
        settings = ExampleSettings(positive=positive, completed_share=1)
        with pytest.raises(InputError, match=sentence):
            build_candidate_dataset(events, store, tmp_path / "dataset", settings)
    with pytest.raises(InputError, match="run `watchrank candidate-dataset`"):
        CandidateDataset.open(tmp_path / "dataset")
