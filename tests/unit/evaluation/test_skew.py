import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings, FeatureSettings
from watchrank.errors import InputError
from watchrank.evaluation import skew
from watchrank.evaluation.skew import sampled_ids, skew_report
from watchrank.feature_store import (
    materialise,
    online_user_features,
    online_video_features,
    open_store,
)
from watchrank.features import build_features
from watchrank.schema import USER_PROFILE, USER_TENSORS, VIDEO_PROFILE, VIDEO_TENSORS, text_id

REPOSITORY = Path(__file__).resolve().parents[3] / "feature_repo"
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
UNTIL = NOON + timedelta(days=3)


@pytest.fixture
def features(make_features, shown) -> Path:
    """Users 1 and 2 watch videos 7 and 8 at noon; user 3, of no known age, never does."""
    users = [{"user_id": 1, "age": 33.0}, {"user_id": 2, "age": 50.0}, {"user_id": 3}]
    impressions = [shown(1, 7, NOON, 30), shown(2, 7, NOON, 12.5), shown(2, 8, NOON + timedelta(hours=1), 3)]
    return make_features(impressions, users=users)[1]


@pytest.fixture
def store(features, tmp_path):
    return open_store(REPOSITORY, features, tmp_path / "state")


def change(file: Path, column: str, values: list) -> None:
    rows = pq.read_table(file)
    place = rows.schema.get_field_index(column)
    pq.write_table(rows.set_column(place, column, pa.array(values, rows.schema.field(place).type)), file)


def by_name(results: dict) -> dict:
    return {row["name"]: row for row in results["features"]}


def test_what_was_materialised_is_equal_even_for_the_unknown(store, tmp_path):
    materialise(store, UNTIL)
    results = skew_report(store, [1, 2, 3, 99], [7, 8, 99], None, tmp_path / "skew")
    assert results["differing"] == []
    assert datetime.fromisoformat(results["at"]) == UNTIL
    found = by_name(results)
    assert found.keys() == {tensor.name for tensor in (*USER_TENSORS, *VIDEO_TENSORS[1:])}
    assert {(row["key"], row["rows"]) for row in found.values()} == {("user_id", 5), ("video_id", 4)}
    assert all(row["share_equal"] == 1 and row["example"] is None for row in found.values())
    assert found["age"]["largest_difference"] == 0
    assert found["country"]["largest_difference"] is None


def test_planted_differences_are_found_and_named(store, features, tmp_path):
    """After the materialisation the offline files get other ages and other seconds in one history."""
    materialise(store, UNTIL)
    change(features / "user_profile.parquet", "age", [35.5, None, None])
    change(features / "user_profile.parquet", "country", [5, -1, -1])
    (activity,) = (features / "user_activity").glob("*/*.parquet")
    seconds = pq.read_table(activity)["watched_seconds"].to_pylist()
    assert seconds[-1] == [3.0, 12.5]
    change(activity, "watched_seconds", [*seconds[:-1], [3.0, 10.0]])
    results = skew_report(store, [3, 1, 2], [7, 8], UNTIL, tmp_path / "skew")
    assert results["differing"] == ["age", "country", "watched_seconds"]
    found = by_name(results)
    assert found["age"]["share_equal"] == 0.5
    assert found["age"]["largest_difference"] == 2.5
    assert found["age"]["example"] == {"entity": 1, "place": None, "offline": 35.5, "online": 33.0}
    assert found["country"]["largest_difference"] is None
    assert found["country"]["example"] == {"entity": 1, "place": None, "offline": 5, "online": -1}
    assert found["watched_seconds"]["share_equal"] == 0.75
    assert found["watched_seconds"]["example"] == {"entity": 2, "place": 1, "offline": 10.0, "online": 12.5}
    assert json.loads((tmp_path / "skew" / "skew.json").read_text()) == results
    page = (tmp_path / "skew" / "skew.html").read_text()
    assert "3 differ" in page
    assert "user_id 2" in page


def test_a_missing_value_differs_from_a_number(store, features, tmp_path):
    materialise(store, UNTIL)
    change(features / "user_profile.parquet", "age", [33.0, None, None])
    found = by_name(skew_report(store, [1, 2, 3], [7], None, tmp_path / "skew"))["age"]
    assert found["share_equal"] == 0.75
    assert found["largest_difference"] == 0
    assert found["example"] == {"entity": 2, "place": None, "offline": None, "online": 50.0}


def test_an_entity_that_left_the_features_stays_online_and_is_found(store, features, tmp_path):
    materialise(store, UNTIL)
    rows = pq.read_table(features / "user_profile.parquet")
    pq.write_table(rows.filter(pc.field("user_id") != 2), features / "user_profile.parquet")
    results = skew_report(store, [1, 2, 3], [7], None, tmp_path / "skew")
    assert results["differing"] == ["age"]
    assert by_name(results)["age"]["example"]["offline"] is None


def test_at_a_later_time_the_online_store_lags(store, tmp_path):
    materialise(store, NOON + timedelta(minutes=1))
    results = skew_report(store, [1, 2], [7, 8], NOON + timedelta(minutes=61), tmp_path / "skew")
    found = by_name(results)
    assert found["watched_video_ids"]["example"] == {"entity": 2, "place": 0, "offline": 8, "online": 7}
    assert found["age"]["share_equal"] == 1


def test_after_a_backfill_online_is_offline_before_and_after_it_came(
    make_events, make_features, shown, tmp_path
):
    """A watch of user 1 after noon and another category of video 7 come with the log of the next day."""
    impressions = [shown(1, 7, NOON, 30), shown(2, 7, NOON + timedelta(hours=2), 3)]
    video = {"video_id": 7, "channel_id": 5}
    _, features = make_features(impressions, videos=[video | {"category": "pets"}])
    late = [shown(1, 8, NOON + timedelta(hours=1), 40), shown(2, 7, NOON + timedelta(days=1))]
    corrected = make_events([*impressions, *late], videos=[video | {"category": "news"}])
    build_features(corrected, features, FeatureSettings(), EngineSettings())
    store = open_store(REPOSITORY, features, tmp_path / "state")
    seen = []
    for until in (NOON + timedelta(hours=20), UNTIL):
        materialise(store, until)
        assert skew_report(store, [1, 2], [7, 8], None, tmp_path / "skew")["differing"] == []
        watches = online_user_features(store, [1])["watched_video_ids"][0, :2].tolist()
        seen.append((watches, online_video_features(store, [7])["category"].item()))
    assert seen == [([7, -1], text_id("pets")), ([8, 7], text_id("news"))]
    assert sorted(sampled_ids(features, VIDEO_PROFILE, 10)) == [7, 8]


def test_a_store_that_is_not_materialised_is_an_error(store, tmp_path):
    with pytest.raises(InputError, match=r"user_activity, .* not in the online store"):
        skew_report(store, [1], [7], None, tmp_path / "skew")
    early = ["user_profile", "user_activity", "user_statistics", "user_search", "video_profile"]
    store.materialize(NOON, UNTIL, early)
    store.materialize(NOON, UNTIL + timedelta(days=1), ["video_statistics"])
    with pytest.raises(InputError, match="different times"):
        skew_report(store, [1], [7], None, tmp_path / "skew")


def test_the_time_of_the_materialisation_outlives_the_process(store, features, tmp_path):
    materialise(store, UNTIL)
    again = open_store(REPOSITORY, features, tmp_path / "state")
    results = skew_report(again, [1], [7], None, tmp_path / "skew")
    assert datetime.fromisoformat(results["at"]) == UNTIL


def test_batches_make_no_difference(store, features, tmp_path, monkeypatch):
    materialise(store, UNTIL)
    change(features / "user_profile.parquet", "age", [35.5, 49.0, None])
    whole = skew_report(store, [1, 3, 2], [7, 8], None, tmp_path / "skew")
    monkeypatch.setattr(skew, "BATCH", 2)
    assert skew_report(store, [1, 3, 2], [7, 8], None, tmp_path / "skew") == whole
    assert by_name(whole)["age"]["largest_difference"] == 2.5


def test_a_sample_is_of_the_profiles_and_seeded(prepared):
    features = prepared.place.features
    users = sampled_ids(features, USER_PROFILE, 50)
    assert (len(set(users)), users) == (50, sampled_ids(features, USER_PROFILE, 50))
    assert users != sampled_ids(features, USER_PROFILE, 50, seed=1)
    everyone = pq.read_table(features / "video_profile.parquet")["video_id"].to_pylist()
    assert sorted(sampled_ids(features, VIDEO_PROFILE, 10**6)) == sorted(everyone)


def test_the_simulated_log_has_no_skew(prepared, tmp_path):
    store = open_store(REPOSITORY, prepared.place.features, tmp_path / "state")
    last = datetime(2026, 1, 9, tzinfo=UTC)
    materialise(store, last)
    users = sampled_ids(prepared.place.features, USER_PROFILE, 100)
    videos = sampled_ids(prepared.place.features, VIDEO_PROFILE, 100)
    results = skew_report(store, users, videos, None, tmp_path / "skew")
    assert results["differing"] == []
    assert np.mean([row["rows"] for row in results["features"]]) == 101
