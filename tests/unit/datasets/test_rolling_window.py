"""A dataset of a window knows nothing of what came after it, and learns from nothing of before it."""

import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from watchrank.config import ExampleSettings, SplitSettings, TextSettings
from watchrank.datasets.candidates import CandidateDataset, build_candidate_dataset
from watchrank.datasets.ranking import RankingDataset, build_ranking_dataset
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.feature_store import open_store

START = datetime(2026, 1, 1, tzinfo=UTC)
SPLIT = SplitSettings(test_days=1, validation_days=1)
EXAMPLES = ExampleSettings(positive="clicked")
TEXT = TextSettings(positive="first_click", max_words=3, max_ngrams=6)


def test_what_came_after_the_window_changes_no_dataset(both):
    cut, whole = both(SPLIT), both(SPLIT.model_copy(update={"until": date(2026, 1, 5)}), days=7)
    for name in ("ranking", "candidates", "searches"):
        expected, found = (contents(folder / name) for folder in (cut, whole))
        assert found.keys() == expected.keys()
        assert len(expected) > 10
        for file, values in expected.items():
            np.testing.assert_array_equal(found[file], values, err_msg=f"{name}/{file}")
        manifests = [json.loads((folder / name / "manifest.json").read_text()) for folder in (cut, whole)]
        for manifest in manifests:
            manifest.pop("window", None)
        assert manifests[1] == manifests[0]


def test_the_days_before_the_window_are_known_and_not_learned_from(both):
    folder = both(SPLIT.model_copy(update={"train_days": 2}), days=7)
    ranking, candidates, searches = (
        kind.open(folder / name)
        for kind, name in (
            (RankingDataset, "ranking"),
            (CandidateDataset, "candidates"),
            (SearchDataset, "searches"),
        )
    )
    start = int((START + timedelta(days=3)).timestamp())
    assert ranking.manifest["splits"]["train"]["from"] == "2026-01-04"
    assert ranking.split("train").requests["now"].min() >= start
    assert candidates.watches["timestamp_us"].min() >= start * 1_000_000
    assert min(candidates.split(name)["now"].min() for name in ("train", "test")) >= start
    assert (candidates.split("train")["watched_video_ids"][:, 0] >= 0).any(), "earlier days are history"
    assert len(searches.split("train")["now"]) > 0
    assert searches.split("train")["now"].min() >= start


@pytest.fixture
def both(make_features, shown, repository, tmp_path):
    """Return a function that builds the three datasets of a log of some days, in one folder."""

    def build(split, days=5):
        tables = {"searches": [*searches(days)], "videos": [*catalogue(days)]}
        events, features = make_features([*impressions(shown, days)], **tables)
        folder = tmp_path / f"{days}_{split.until}"
        store = open_store(repository / "feature_repo", features, folder / "store")
        build_ranking_dataset(events, store, folder / "ranking", split)
        build_candidate_dataset(events, store, folder / "candidates", EXAMPLES, split)
        build_search_dataset(events, folder / "searches", TEXT, split)
        return folder

    return build


def impressions(shown, days):
    """Six users, each shown two videos a day, one of which is opened; from the sixth day on elsewhere."""
    for day in range(days):
        for user in range(1, 7):
            at = START + timedelta(days=day, hours=user)
            surface = "home" if day < 5 else "late"
            yield shown(user, video_of(user, day), at, 10.0 + user + day, surface=surface)
            yield shown(user, 1 + day, at + timedelta(seconds=1), surface=surface)


def video_of(user, day):
    return 1 + (user * day + day) % 9 if day < 5 else 10 + day


def searches(days):
    for day in range(days):
        for user in range(1, 7):
            at = START + timedelta(days=day, hours=user) - timedelta(minutes=1)
            yield {"user_id": user, "timestamp": at, "query": f"word {user % 3} {day}"}


def catalogue(days):
    """Nine videos from before the log, and one uploaded each of its days."""
    for video in range(1, 10 + days):
        at = START + timedelta(days=video - 10, minutes=5)
        yield {
            "video_id": video,
            "channel_id": 100 + video % 3,
            "upload_time": at,
            "duration_seconds": 100.0,
            "title": f"title {video}",
        }


def contents(folder):
    files = sorted(folder.rglob("*.npy"))
    return {file.relative_to(folder).as_posix(): np.load(file) for file in files}
