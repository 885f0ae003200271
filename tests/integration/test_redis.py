"""Feast's online store in a real Redis, by the configuration file alone."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from watchrank.errors import InputError
from watchrank.feature_store import (
    materialise,
    online_user_features,
    online_video_features,
    open_store,
    push,
)
from watchrank.schema import USER_STATISTICS

USERS = [*range(300), 10**12]


@pytest.fixture(scope="module")
def stores(prepared, redis, repository, tmp_path_factory):
    """The same features in SQLite and in Redis."""
    state = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATCHRANK_REDIS", redis)
        in_redis = open_store(
            repository / "feature_repo" / "feature_store_redis.yaml", prepared.place.features, state
        )
    in_sqlite = open_store(repository / "feature_repo", prepared.place.features, state / "sqlite")
    for store in (in_redis, in_sqlite):
        materialise(store, datetime.now(UTC))
    return in_redis, in_sqlite


def test_redis_gives_the_features_that_sqlite_gives(stores, prepared):
    in_redis, in_sqlite = (online_user_features(store, USERS) for store in stores)
    for name, values in in_sqlite.items():
        np.testing.assert_array_equal(in_redis[name], values, err_msg=name)
    assert (in_redis["watched_video_ids"] != -1).any()
    files = prepared.place.features / "video_profile.parquet"
    videos = pd.read_parquet(files)["video_id"].tolist()
    in_redis, in_sqlite = (online_video_features(store, videos) for store in stores)
    for name, values in in_sqlite.items():
        np.testing.assert_array_equal(in_redis[name], values, err_msg=name)


def test_what_is_pushed_is_what_is_read_next(stores):
    in_redis, in_sqlite = stores
    before = online_user_features(in_redis, USERS)["user_clicks_7d"]
    row = {"user_id": 5, "user_impressions_7d": 900, "user_clicks_7d": 77, "user_watch_seconds_7d": 1.5}
    push(in_redis, USER_STATISTICS, pd.DataFrame([row]), datetime.now(UTC))
    after = online_user_features(in_redis, USERS)["user_clicks_7d"]
    assert after[5] == 77
    assert np.flatnonzero((after != before).any(axis=1)).tolist() == [5]
    assert online_user_features(in_sqlite, [5])["user_clicks_7d"] == before[5]


def test_rows_that_do_not_fit_the_table_are_refused(stores):
    rows = pd.DataFrame([{"user_id": 5, "clicks": 3}])
    with pytest.raises(InputError, match=r"user_statistics differ .* in \['clicks', 'user_clicks_7d'"):
        push(stores[0], USER_STATISTICS, rows, datetime.now(UTC))


def test_a_missing_connection_is_named(prepared, repository, tmp_path, monkeypatch):
    monkeypatch.delenv("WATCHRANK_REDIS", raising=False)
    file = repository / "feature_repo" / "feature_store_redis.yaml"
    with pytest.raises(InputError, match="needs the environment variable WATCHRANK_REDIS"):
        open_store(file, prepared.place.features, tmp_path)


def test_a_corrected_row_replaces_the_one_of_the_same_time(prepared, redis, repository, tmp_path):
    """In a database of its own: what is online here is not what the other stores have."""
    features = shutil.copytree(prepared.place.features, tmp_path / "features")
    file = max((features / "user_statistics").glob("*/*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATCHRANK_REDIS", f"{redis},db=1")
        store = open_store(repository / "feature_repo" / "feature_store_redis.yaml", features, tmp_path)
    materialise(store, datetime.now(UTC))
    rows = pd.read_parquet(file, partitioning=None)
    users = rows["user_id"].tolist()
    before = online_user_features(store, users)["user_clicks_7d"].ravel()
    assert before.tolist() == rows["user_clicks_7d"].tolist()
    created = rows["created_timestamp"] + timedelta(days=1)
    corrected = rows.assign(user_clicks_7d=before + 1, created_timestamp=created)
    pd.concat([rows, corrected]).to_parquet(file, index=False)
    materialise(store, datetime.now(UTC))
    after = online_user_features(store, users)["user_clicks_7d"].ravel()
    assert after.tolist() == (before + 1).tolist()
