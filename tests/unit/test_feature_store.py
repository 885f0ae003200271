import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.online_stores.sqlite import SqliteOnlineStore

from watchrank.errors import InputError
from watchrank.feature_store import (
    USER_TABLES,
    VIDEO_TABLES,
    feature_refs,
    historical_features,
    materialise,
    online_user_features,
    online_video_features,
    open_store,
    pad_lists,
)
from watchrank.schema import (
    FEATURE_TABLES,
    PAD_ID,
    USER_ACTIVITY,
    USER_PROFILE,
    USER_SEARCH,
    USER_TENSORS,
    VIDEO_TENSORS,
    text_id,
)

REPOSITORY = Path(__file__).resolve().parents[2] / "feature_repo"
INSTANT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)


def entities(key: str, *rows: tuple[int, datetime]) -> pd.DataFrame:
    times = pd.DatetimeIndex([time for _, time in rows]).astype("datetime64[us, UTC]")
    return pd.DataFrame({key: [entity for entity, _ in rows], "event_timestamp": times})


@pytest.fixture(scope="module")
def log(shown) -> dict:
    """User 1 watches video 7 at noon and 8 ten minutes later; user 2 is shown 7 five minutes after noon."""
    return {
        "impressions": [
            shown(1, 7, NOON, 30),
            shown(2, 7, NOON + 5 * MINUTE),
            shown(1, 8, NOON + 10 * MINUTE, 12.5),
        ],
        "searches": [{"user_id": 2, "timestamp": NOON + 5 * MINUTE, "query": "cats"}],
        "users": [{"user_id": 1, "age": 33.0, "language": "fr"}, {"user_id": 3, "language": "en"}],
    }


@pytest.fixture(scope="module")
def features(make_features, log) -> Path:
    return make_features(**log)[1]


@pytest.fixture(scope="module")
def store(features, tmp_path_factory):
    return open_store(REPOSITORY, features, tmp_path_factory.mktemp("state"))


def test_past_features_are_the_newest_before_each_row(store):
    rows = [(1, NOON + 10 * MINUTE), (1, NOON), (1, NOON + INSTANT), (1, NOON + 11 * MINUTE)]
    found = historical_features(store, USER_TABLES, entities("user_id", *rows))
    assert found["watched_video_ids"][:, :3].tolist() == [[7, -1, -1], [-1, -1, -1], [7, -1, -1], [8, 7, -1]]
    assert found["watched_seconds"][:, :3].tolist() == [[30, 0, 0], [0, 0, 0], [30, 0, 0], [12.5, 30, 0]]
    assert found["user_impressions_7d"].tolist() == [0] * 4
    later = historical_features(store, USER_TABLES, entities("user_id", (1, NOON + 2 * DAY)))
    assert later["user_impressions_7d"].tolist() == [2]
    assert later["user_watch_seconds_7d"].tolist() == [42.5]
    assert found["age"].tolist() == [33.0] * 4
    assert found["user_language"].tolist() == [text_id("fr")] * 4


def test_no_row_is_lost_and_the_order_stays(store):
    """Rows that share (user, time), users that nothing is known of, and times before any feature."""
    random = np.random.default_rng(0)
    users = random.choice([1, 2, 3, 99], 500)
    times = random.choice([NOON - MINUTE, NOON + MINUTE, NOON + 2 * DAY], 500)
    found = historical_features(store, USER_TABLES, entities("user_id", *zip(users, times, strict=True)))
    ages = np.where(users == 1, 33.0, np.nan)
    assert np.array_equal(found["age"], ages, equal_nan=True)
    seen = {(1, NOON + 2 * DAY): 2, (2, NOON + 2 * DAY): 1}
    assert found["user_impressions_7d"].tolist() == [
        seen.get(key, 0) for key in zip(users, times, strict=True)
    ]


def test_what_is_missing_has_the_same_defaults_past_and_present(store):
    materialise(store, NOON + 20 * MINUTE)
    past = historical_features(store, USER_TABLES, entities("user_id", (99, NOON)))
    now = online_user_features(store, [99])
    for tensor in USER_TENSORS:
        lists = len(tensor.dims) == 1 and tensor.dims[0] > 1
        floats = tensor.name in ("age", "watched_seconds", "user_watch_seconds_7d")
        empty = {"age": np.nan}.get(tensor.name, 0 if floats or tensor.name.endswith("_7d") else PAD_ID)
        assert np.array_equal(now[tensor.name], np.full((1, *tensor.dims), empty), equal_nan=True), (
            tensor.name
        )
        assert past[tensor.name].shape == ((1, *tensor.dims) if lists else (1,))
        assert np.array_equal(past[tensor.name].ravel(), now[tensor.name].ravel(), equal_nan=True)
    video = online_video_features(store, [99])
    assert (video["channel_id"][0], video["upload_time"][0], video["video_impressions_7d"][0]) == (-1, -1, 0)
    assert np.isnan(video["duration_seconds"][0])


@pytest.fixture
def default_engine():
    """Ibis' default engine, which Feast's own store reads through; closed after the test."""
    engine = ibis.duckdb.connect()
    ibis.set_backend(engine)
    yield engine
    ibis.options.default_backend = None
    engine.disconnect()


def test_the_scalable_join_answers_as_feasts_own(make_features, shown, tmp_path, default_engine):
    random = np.random.default_rng(2)
    seconds = random.integers(0, 9 * 86_400, 300).tolist()
    impressions = {
        (second % 5, second): shown(
            second % 5, second % 7, NOON + timedelta(seconds=second), second % 3 * 10.0
        )
        for second in seconds
    }
    _, features = make_features(impressions.values())
    store = open_store(REPOSITORY, features, tmp_path)
    for key, tables in (("user_id", USER_TABLES), ("video_id", VIDEO_TABLES)):
        rows = [(second % 9, NOON + timedelta(seconds=second)) for second in [*seconds, *seconds[:50]]]
        frame = entities(key, *rows).assign(row_id=range(len(rows)))
        views = [store.get_feature_view(table.name) for table in tables]
        theirs = DuckDBOfflineStore.get_historical_features(
            store.config,
            views,
            feature_refs(tables),
            frame,
            store.registry,
            store.project,
            filter_by_created_timestamp=True,
        ).to_df()
        ours = store.get_historical_features(
            frame, feature_refs(tables), filter_by_created_timestamp=True
        ).to_df()
        theirs, ours = (table.sort_values("row_id", ignore_index=True) for table in (theirs, ours))
        pd.testing.assert_frame_equal(ours[theirs.columns], theirs, check_dtype=False)
        assert len(ours) == 350


@pytest.fixture(scope="module")
def backfilled(make_features, shown) -> tuple[list[tuple[int, int, int]], Path]:
    """Rows (user, event, created) at whole minutes after noon, with ties in both; clicks count them."""
    random = np.random.default_rng(4)
    users, events = random.integers(0, 12, 900), random.integers(0, 60, 900)
    late = random.choice([0, 0, 0, 5, 20, 60], 900)
    created = np.where(late == 60, 60, events + late)
    rows = sorted({*zip(users.tolist(), events.tolist(), created.tolist(), strict=True)})
    _, features = make_features([shown(1, 7, NOON)])
    (file,) = (features / "user_statistics").glob("*/*")
    stamps = [[NOON + row[place] * MINUTE for row in rows] for place in (1, 2)]
    number = list(range(len(rows)))
    table = pa.table([[row[0] for row in rows], *stamps, number, number, number], pq.read_schema(file).names)
    pq.write_table(table.cast(pq.read_schema(file)), file)
    return rows, features


def test_of_what_was_created_by_then_the_newest_event_counts_then_the_newest_creation(
    backfilled, tmp_path, default_engine
):
    rows, features = backfilled
    store = open_store(REPOSITORY, features, tmp_path)
    asked = [(user, minute) for user in range(13) for minute in range(-1, 90)]
    known = [
        max(((e, c, place) for place, (u, e, c) in enumerate(rows) if u == user and c <= at), default=None)
        for user, at in asked
    ]
    frame = entities("user_id", *((user, NOON + at * MINUTE) for user, at in asked))
    found = historical_features(store, USER_TABLES, frame)["user_clicks_7d"]
    assert found.tolist() == [row[-1] if row else 0 for row in known]
    theirs = DuckDBOfflineStore.get_historical_features(
        store.config,
        [store.get_feature_view("user_statistics")],
        ["user_statistics:user_clicks_7d"],
        frame.assign(row_id=range(len(frame))),
        store.registry,
        store.project,
        filter_by_created_timestamp=True,
    ).to_df()
    theirs = theirs.sort_values("row_id")["user_clicks_7d"].fillna(0)
    assert found.tolist() == theirs.tolist()


@pytest.mark.parametrize("minute", [0, 13, 59, 60, 75])
def test_what_was_created_later_is_not_materialised(backfilled, minute, tmp_path):
    features = backfilled[1]
    until = NOON + minute * MINUTE
    store = open_store(REPOSITORY, features, tmp_path)
    materialise(store, until)
    past = historical_features(
        store, USER_TABLES, entities("user_id", *((user, until) for user in range(12)))
    )
    now = online_user_features(store, range(12))
    assert now["user_clicks_7d"].ravel().tolist() == past["user_clicks_7d"].tolist()


def test_materialising_writes_block_by_block_what_feast_writes_at_once(backfilled, tmp_path, monkeypatch):
    _, features = backfilled
    theirs = shutil.copytree(REPOSITORY, tmp_path / "theirs")
    settings = (theirs / "feature_store.yaml").read_text()
    engine = "batch_engine:\n  type: watchrank.compute_engine.BlockComputeEngine\n"
    assert engine in settings
    (theirs / "feature_store.yaml").write_text(settings.replace(engine, ""))
    at_once, in_blocks = (
        open_store(repository, features, tmp_path / name)
        for repository, name in ((theirs, "at_once"), (REPOSITORY, "in_blocks"))
    )
    materialise(at_once, NOON + 40 * MINUTE)

    def whole(*_):
        pytest.fail("all rows were read at once")

    blocks: list[int] = []
    write = SqliteOnlineStore.online_write_batch

    def counted(self, config, table, data, progress):
        if table.name == "user_statistics":
            blocks.append(len(data))
        return write(self, config, table, data, progress)

    monkeypatch.setattr(IbisRetrievalJob, "to_arrow", whole)
    monkeypatch.setattr(SqliteOnlineStore, "online_write_batch", counted)
    in_blocks.config.materialization_config.online_write_batch_size = 5
    materialise(in_blocks, NOON + 40 * MINUTE)
    assert blocks == [5, 5, 2]
    found, expected = (online_user_features(store, range(13)) for store in (in_blocks, at_once))
    assert found["user_clicks_7d"].any()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_join_that_would_leak_backfills_is_refused(store):
    with pytest.raises(NotImplementedError, match="filter_by_created_timestamp=True"):
        store.get_historical_features(entities("user_id", (1, NOON)), feature_refs(USER_TABLES))


@pytest.mark.parametrize("until", [NOON, NOON + INSTANT, NOON + 7 * MINUTE, NOON + timedelta(hours=3)])
def test_online_features_are_the_past_ones_of_the_materialised_time(features, tmp_path, until):
    store = open_store(REPOSITORY, features, tmp_path)
    materialise(store, until)
    users, videos = [1, 2, 3, 99], [7, 8, 99]
    now = online_user_features(store, users)
    past = historical_features(store, USER_TABLES, entities("user_id", *((user, until) for user in users)))
    for tensor in USER_TENSORS:
        assert now[tensor.name].dtype == past[tensor.name].dtype == tensor.dtype
        assert now[tensor.name].shape == (4, *tensor.dims)
        assert np.array_equal(
            now[tensor.name].reshape(past[tensor.name].shape), past[tensor.name], equal_nan=True
        )
    now = online_video_features(store, videos)
    past = historical_features(
        store, VIDEO_TABLES, entities("video_id", *((video, until) for video in videos))
    )
    assert list(now) == [tensor.name for tensor in VIDEO_TENSORS]
    for tensor in VIDEO_TENSORS[1:]:
        assert now[tensor.name].dtype == past[tensor.name].dtype == tensor.dtype
        assert np.array_equal(now[tensor.name], past[tensor.name], equal_nan=True)


def test_materialising_a_later_time_brings_the_new_watch_online(features, tmp_path):
    store = open_store(REPOSITORY, features, tmp_path)
    materialise(store, NOON + MINUTE)
    assert online_user_features(store, [1])["watched_video_ids"][0, :2].tolist() == [7, -1]
    materialise(store, NOON + 11 * MINUTE)
    assert online_user_features(store, [1])["watched_video_ids"][0, :2].tolist() == [8, 7]


def test_each_store_reads_its_own_features(store, make_features, shown, tmp_path):
    _, others = make_features([shown(1, 9, NOON, 5)])
    other = open_store(REPOSITORY, others, tmp_path)
    row = entities("user_id", (1, NOON + MINUTE))
    assert historical_features(other, USER_TABLES, row)["watched_video_ids"][0, 0] == 9
    assert historical_features(store, USER_TABLES, row)["watched_video_ids"][0, 0] == 7


def test_opening_again_changes_nothing_and_keeps_what_is_online(features, tmp_path):
    first = open_store(REPOSITORY, features, tmp_path / "state")
    materialise(first, NOON + MINUTE)
    names = [view.name for view in first.list_feature_views()]
    again = open_store(REPOSITORY, features, tmp_path / "state")
    assert sorted(names) == sorted(view.name for view in again.list_feature_views())
    assert online_user_features(again, [1])["watched_video_ids"][0, 0] == 7
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["online.db", "registry.db"]
    assert "WATCHRANK_FEATURES" not in os.environ


def test_definitions_are_the_schema(store):
    for table in FEATURE_TABLES:
        view = store.get_feature_view(table.name)
        assert [field.name for field in view.features] == table.names
        assert not view.ttl
    services = {service.name: service for service in store.list_feature_services()}
    offered = {
        name: [
            f"{view.name}:{field.name}"
            for view in service.feature_view_projections
            for field in view.features
        ]
        for name, service in services.items()
    }
    assert offered == {
        "ranking": feature_refs([table for table in FEATURE_TABLES if table is not USER_SEARCH]),
        "text_match": feature_refs([USER_SEARCH]),
        "candidate_generation": feature_refs([USER_PROFILE, USER_ACTIVITY]),
    }


def test_feast_apply_takes_the_same_definitions(features, tmp_path):
    repository = shutil.copytree(REPOSITORY, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "state").mkdir()
    places = {"WATCHRANK_FEATURES": str(features), "WATCHRANK_STATE": str(tmp_path / "state")}
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run(
        [feast, "apply"], cwd=repository, env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "state" / "registry.db").is_file()
    assert "user_activity" in done.stdout


def test_a_folder_without_features_or_definitions_is_named(features, tmp_path):
    with pytest.raises(InputError, match=r"no .*build\.json; run `watchrank features` first"):
        open_store(REPOSITORY, tmp_path, tmp_path / "state")
    with pytest.raises(InputError, match=r"no .*feature_store\.yaml; give the project's feature_repo"):
        open_store(tmp_path, features, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_lists_are_cut_and_padded():
    ids = pa.chunked_array([[[1, 2, 3, 4]], [[], None, [5]]], pa.list_(pa.int64()))
    assert pad_lists(ids, 3).tolist() == [[1, 2, 3], [-1, -1, -1], [-1, -1, -1], [5, -1, -1]]
    assert pad_lists(ids.slice(2), 2).tolist() == [[-1, -1], [5, -1]]
    floats = pad_lists(pa.array([[1.5], None], pa.list_(pa.float32())), 2)
    assert (floats.tolist(), floats.dtype) == ([[1.5, 0.0], [0.0, 0.0]], np.float32)
    assert pad_lists(pa.array([], pa.list_(pa.int64())), 2).shape == (0, 2)
