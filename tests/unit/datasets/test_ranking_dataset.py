import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from watchrank.config import SplitSettings
from watchrank.datasets import ranking
from watchrank.datasets.columns import read_columns
from watchrank.datasets.ranking import RankingDataset, build_ranking_dataset
from watchrank.errors import InputError
from watchrank.feature_store import open_store
from watchrank.schema import PAD_ID, USER_TENSORS, VIDEO_TENSORS, text_id
from watchrank.storage import atomic_path, write_json

REPOSITORY = Path(__file__).resolve().parents[3] / "feature_repo"
DAY = timedelta(days=1)
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
ONE_DAY_EACH = SplitSettings(test_days=1, validation_days=1)


@pytest.fixture(scope="module")
def make_dataset(make_features, tmp_path_factory):
    """Return a function that builds a dataset of a log given as rows."""

    def make(impressions, *, split: SplitSettings = ONE_DAY_EACH, **tables) -> RankingDataset:
        events, features = make_features(impressions, **tables)
        folder = tmp_path_factory.mktemp("dataset")
        build_ranking_dataset(events, open_store(REPOSITORY, features, folder), folder / "set", split)
        return RankingDataset.open(folder / "set")

    return make


def filler(shown) -> list[dict]:
    """One impression on each of three days by a user of its own, so that every split has one."""
    return [shown(50, 50, NOON + day * DAY, surface="home", position=0) for day in range(3)]


@pytest.fixture(scope="module")
def plain(make_dataset, shown) -> RankingDataset:
    return make_dataset(filler(shown))


@pytest.fixture(scope="module")
def not_validated(make_dataset, shown) -> RankingDataset:
    return make_dataset(filler(shown), split=SplitSettings(test_days=2, validation_days=0))


def impressions_of(dataset: RankingDataset, name: str, video: int) -> list[dict]:
    """The impressions of a video with their requests, as rows of plain values."""
    split = dataset.split(name)
    rows = np.flatnonzero(split.impressions["video_id"] == video)
    return [
        {column: values[row].tolist() for column, values in split.impressions.items()}
        | {
            column: values[split.impressions["request"][row]].tolist()
            for column, values in split.requests.items()
        }
        for row in rows
    ]


def test_every_impression_has_the_features_known_at_its_time(make_dataset, shown):
    dataset = make_dataset(
        [
            *filler(shown),
            shown(1, 7, NOON, 30, surface="home", position=1),
            shown(1, 8, NOON, surface="home", position=0),
            shown(1, 9, NOON + 2 * DAY, 40, surface="feed", position=3),
            shown(2, 7, NOON + DAY),
        ],
        users=[{"user_id": 1, "language": "fr"}],
        videos=[
            {
                "video_id": 9,
                "channel_id": 5,
                "upload_time": NOON - DAY,
                "duration_seconds": 80.0,
                "language": "en",
            }
        ],
    )
    (row,) = impressions_of(dataset, "test", 9)
    wanted = {
        "user_id": 1,
        "timestamp_us": int((NOON + 2 * DAY).timestamp()) * 1_000_000,
        "now": int((NOON + 2 * DAY).timestamp()),
        "surface": text_id("feed"),
        "clicked": True,
        "watch_seconds": 40.0,
        "position": 3,
        "channel_id": 5,
        "upload_time": int((NOON - DAY).timestamp()),
        "duration_seconds": 80.0,
        "video_language": text_id("en"),
        "video_impressions_7d": 0,
        "user_language": text_id("fr"),
        "user_impressions_7d": 2,
        "user_watch_seconds_7d": 30.0,
        "watched_video_ids": [7] + [PAD_ID] * 49,
        "watched_channel_ids": [107] + [PAD_ID] * 49,
        "watched_seconds": [30.0] + [0.0] * 49,
        "impression_video_ids": [8, 7] + [PAD_ID] * 198,
    }
    assert {name: row[name] for name in wanted} == wanted
    (later,) = impressions_of(dataset, "validation", 7)
    assert (later["video_impressions_1d"], later["video_clicks_7d"], later["video_watch_seconds_7d"]) == (
        1,
        1,
        30.0,
    )
    assert (later["position"], later["surface"]) == (PAD_ID, PAD_ID)


def test_columns_are_those_of_the_models_tensors(plain):
    split = plain.split("train")
    assert len(split) == 1
    for tensor in USER_TENSORS:
        column = split.requests[tensor.name]
        assert (column.dtype, column.shape) == (
            tensor.dtype,
            (1,) if tensor.dims == (1,) else (1, *tensor.dims),
        )
    for tensor in VIDEO_TENSORS:
        column = split.impressions[tensor.name]
        assert (column.dtype, column.shape) == (tensor.dtype, (1,))
    assert split.requests.keys() - {tensor.name for tensor in USER_TENSORS} == {"user_id", "now", "surface"}


def test_no_impression_is_lost_though_many_share_user_and_time(make_dataset, shown):
    surfaces = ["home", "feed", None]
    log = [
        shown(
            user, video, NOON + day * DAY + timedelta(hours=hour), surface=surfaces[video % 3], position=video
        )
        for day in range(4)
        for hour in range(3)
        for user in range(5)
        for video in range(1, 9)
    ]
    dataset = make_dataset(log)
    found = []
    for name, days in {"train": [0, 1], "validation": [2], "test": [3]}.items():
        split = dataset.split(name)
        request = split.impressions["request"]
        assert len(split) == 120 * len(days) == dataset.manifest["splits"][name]["rows"]
        assert len(split.requests["now"]) == 45 * len(days) == dataset.manifest["splits"][name]["requests"]
        assert np.array_equal(np.unique(request), np.arange(45 * len(days)))
        assert np.all(np.diff(split.impressions["timestamp_us"]) >= 0)
        assert np.array_equal(split.requests["now"][request], split.impressions["timestamp_us"] // 1_000_000)
        users, videos = split.requests["user_id"][request].tolist(), split.impressions["video_id"].tolist()
        shown_on = split.requests["surface"][request].tolist()
        assert shown_on == [text_id(surfaces[video % 3]) for video in videos]
        assert split.impressions["position"].tolist() == videos
        found += zip(split.impressions["timestamp_us"].tolist(), users, videos, strict=True)
    keys = ((row["timestamp"], row["user_id"], row["video_id"]) for row in log)
    assert sorted(found) == sorted((int(time.timestamp()) * 1_000_000, *rest) for time, *rest in keys)


@pytest.fixture(scope="module")
def planted(make_dataset, shown) -> RankingDataset:
    """Users 1, 2 and 3 are shown video 9 at one time, and watch video 7 just before, then, and just after.

    Videos 21, 22 and 23 are shown at one time, and watched in the hour before, in that one and in the next.
    Users 31 and 32 watch video 8 just before midnight and at midnight, one and a half days before.
    """
    time = NOON + 2 * DAY + timedelta(minutes=30)
    rows, searches = filler(shown), []
    for place, offset in enumerate([-1, 0, 1], start=1):
        watch = time + timedelta(seconds=offset)
        rows += [shown(place, 9, time), shown(place, 7, watch, 777)]
        searches.append({"user_id": place, "timestamp": watch, "query": "secret"})
        rows += [
            shown(10, 20 + place, time),
            shown(11, 20 + place, time + timedelta(hours=offset, minutes=-1), 777),
        ]
    midnight = NOON.replace(hour=0) + DAY
    for user, watch in ((31, midnight - timedelta(microseconds=1)), (32, midnight)):
        rows += [shown(user, 8, watch, 777), shown(user, 9, time)]
    return make_dataset(rows, searches=searches)


@pytest.mark.parametrize(("user", "known"), [(1, True), (2, False), (3, False)])
def test_a_planted_event_reaches_a_row_only_from_the_past(planted, user, known):
    row = next(row for row in impressions_of(planted, "test", 9) if row["user_id"] == user)
    assert (7 in row["watched_video_ids"]) is known
    assert (7 in row["impression_video_ids"]) is known
    assert (text_id("secret") in row["search_token_ids"]) is known


@pytest.mark.parametrize(("user", "known"), [(31, True), (32, False)])
def test_planted_user_statistics_reach_a_row_when_their_day_and_the_lag_are_over(planted, user, known):
    row = next(row for row in impressions_of(planted, "test", 9) if row["user_id"] == user)
    assert (row["user_impressions_7d"], row["user_watch_seconds_7d"]) == ((1, 777.0) if known else (0, 0.0))


@pytest.mark.parametrize(("video", "known"), [(21, True), (22, False), (23, False)])
def test_planted_video_statistics_reach_a_row_only_from_the_past(planted, video, known):
    """Statistics are renewed every hour: the hour of the row, and what follows, must not be in it."""
    row = next(row for row in impressions_of(planted, "test", video) if row["user_id"] == 10)
    assert (row["video_impressions_7d"], row["video_watch_seconds_1d"]) == ((1, 777.0) if known else (0, 0.0))


def test_the_size_of_pieces_does_not_show(make_features, shown, tmp_path, monkeypatch):
    log = [
        shown(user, video, NOON + day * DAY + timedelta(minutes=user), 5.0 * video)
        for day in range(4)
        for user in range(7)
        for video in range(1, 4)
    ]
    events, features = make_features(log)
    store = open_store(REPOSITORY, features, tmp_path / "state")
    build_ranking_dataset(events, store, tmp_path / "whole", ONE_DAY_EACH)
    monkeypatch.setattr(ranking, "BLOCK_REQUESTS", 4)
    monkeypatch.setattr(ranking, "BLOCK_IMPRESSIONS", 7)
    monkeypatch.setattr(ranking, "READ_ROWS", 30)
    build_ranking_dataset(events, store, tmp_path / "pieces", ONE_DAY_EACH)
    whole, pieces = (RankingDataset.open(tmp_path / name).manifest for name in ("whole", "pieces"))
    assert pieces == whole


def test_the_manifest_tells_days_surfaces_and_absent_features(not_validated):
    manifest = not_validated.manifest
    splits = manifest["splits"]
    assert [splits["train"][key] for key in ("from", "until", "rows", "requests")] == ["2026-01-10"] * 2 + [
        1,
        1,
    ]
    assert [splits["test"][key] for key in ("from", "until", "rows")] == ["2026-01-11", "2026-01-12", 2]
    assert [splits["validation"][key] for key in ("from", "until", "rows", "requests")] == [None, None, 0, 0]
    assert manifest["surfaces"] == {"home": text_id("home")}
    assert manifest["absent_features"] == [
        "age",
        "candidate_source",
        "category",
        "country",
        "device",
        "gender",
        "last_search_time",
        "logged_in",
        "search_ngram_ids",
        "search_token_ids",
        "signup_time",
        "user_language",
        "video_language",
    ]


def test_an_empty_split_has_the_same_columns(not_validated):
    full, empty = not_validated.split("train"), not_validated.split("validation")
    assert len(empty) == 0
    for columns, others in ((full.requests, empty.requests), (full.impressions, empty.impressions)):
        assert {name: (c.dtype, c.shape[1:]) for name, c in columns.items()} == {
            name: (c.dtype, c.shape[1:]) for name, c in others.items()
        }


def test_labels_that_the_log_has_are_kept(make_dataset, shown):
    log = filler(shown)
    log[0] |= {"liked": True}
    log[1] |= {"liked": None}
    dataset = make_dataset(log)
    assert [dataset.split(name).impressions["liked"].tolist() for name in ("train", "validation")] == [
        [1],
        [PAD_ID],
    ]
    assert "followed" not in dataset.split("train").impressions


def test_too_few_days_leave_the_dataset_as_it_was(make_events, shown, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="have 3 days"):
        build_ranking_dataset(
            make_events(filler(shown)), None, tmp_path, SplitSettings(test_days=2, validation_days=1)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_an_open_dataset_stays_what_it_was(plain, tmp_path):
    data = RankingDataset.open(shutil.copytree(plain.path, tmp_path / "dataset"))
    shutil.rmtree(tmp_path / "dataset")
    for name, column in plain.split("train").requests.items():
        np.testing.assert_array_equal(data.split("train").requests[name], column)


def test_a_dataset_that_is_replaced_while_it_is_opened_is_opened_again(plain, tmp_path, monkeypatch):
    place = shutil.copytree(plain.path, tmp_path / "dataset")

    def replaced(folder):
        found = read_columns(folder)
        monkeypatch.undo()
        with atomic_path(place) as fresh:
            shutil.copytree(plain.path, fresh)
            write_json(fresh / "manifest.json", plain.manifest | {"surfaces": {"new": 1}})
        return found

    monkeypatch.setattr("watchrank.datasets.columns.read_columns", replaced)
    assert RankingDataset.open(place).manifest["surfaces"] == {"new": 1}


def test_a_damaged_column_is_named(plain, tmp_path):
    place = shutil.copytree(plain.path, tmp_path / "dataset")
    column = place / "train" / "impressions" / "watch_seconds.npy"
    column.write_bytes(column.read_bytes()[:40])
    with pytest.raises(InputError, match=r"the column .*watch_seconds.npy.*build the dataset again"):
        RankingDataset.open(place)


def test_a_folder_without_a_dataset_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no dataset in .*; run `watchrank dataset` first"):
        RankingDataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="no dataset in"):
        RankingDataset.open(tmp_path)


def test_the_manifest_is_json_in_the_folder(plain):
    assert json.loads((plain.path / "manifest.json").read_text()) == plain.manifest
    assert plain.absent_features == frozenset(plain.manifest["absent_features"])
