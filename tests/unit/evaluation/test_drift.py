import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from watchrank.config import DriftSettings
from watchrank.datasets.ranking import RankingDataset, Split
from watchrank.errors import InputError
from watchrank.evaluation import drift_samples
from watchrank.evaluation.drift import drift_report, reading
from watchrank.evaluation.drift_bins import compare_ids, compare_numbers
from watchrank.evaluation.drift_samples import log_sample, split_sample
from watchrank.evaluation.realised import realised_watch_time
from watchrank.schema import REQUEST_TENSORS, USER_TENSORS, VIDEO_TENSORS
from watchrank.serving.question import Recommendation
from watchrank.serving.request_log import RequestLog

NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def recommended(user: int, videos: list[int], seconds: list[float]) -> Recommendation:
    scores = [0.0] * len(videos)
    return Recommendation(
        user_id=user, video_ids=videos, expected_watch_seconds=seconds, candidate_scores=scores, release=1
    )


@pytest.fixture(scope="module")
def dataset(prepared) -> RankingDataset:
    return RankingDataset.open(prepared.place.dataset)


@pytest.fixture(scope="module")
def train(dataset) -> Split:
    return dataset.split("train")


@pytest.fixture(scope="module")
def log(dataset, tmp_path_factory):
    """A request log of the test window: each request answered by video 7."""
    requests = dataset.split("test").requests
    rows = len(requests["now"])
    shaped = {
        tensor.name: requests[tensor.name].reshape(rows, *tensor.dims)
        for tensor in (*REQUEST_TENSORS, *USER_TENSORS)
    }
    folder = tmp_path_factory.mktemp("log")
    with RequestLog(folder, share=1, rows_a_file=rows // 3) as log:
        for part in np.array_split(np.arange(rows), 10):
            users = requests["user_id"][part].tolist()
            sent = {name: values[part] for name, values in shaped.items()}
            log.append(sent, [recommended(user, [7], [2.0]) for user in users], NOON)
    return folder


def test_the_index_is_the_hand_computed_one():
    """Ids 1 and 2: 3 of 4 and 1 of 4 before, 1 and 3 now; others and missing are empty."""
    found = compare_ids(np.array([1, 1, 1, 2]), np.array([2, 2, 1, 2]))
    assert found.labels == ["1", "2", "others", "missing"]
    assert (found.reference.tolist(), found.current.tolist()) == ([3, 1, 0, 0], [1, 3, 0, 0])
    p, q = [3.5 / 6, 1.5 / 6], [1.5 / 6, 3.5 / 6]
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert found.psi == pytest.approx(by_hand)
    assert found.noise == pytest.approx((2 - 1) * (1 / 4 + 1 / 4))


def test_numbers_fall_into_the_deciles_of_the_reference():
    found = compare_numbers(np.arange(1.0, 101), np.array([-5, 10, 10.5, 100, 1e9, np.nan, np.nan]))
    assert found.labels == [*(f"≤ {edge}" for edge in range(10, 100, 10)), "> 90", "missing"]
    assert found.reference.tolist() == [10] * 10 + [0]
    assert found.current.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2, 2]


def test_a_value_that_fills_deciles_has_a_bin_of_its_own():
    """Without one, a constant that turns into a lower one would show no drift."""
    found = compare_numbers(np.full(100, 5.0), np.full(100, 3.0))
    assert found.labels == ["< 5", "= 5", "> 5", "missing"]
    assert (found.reference.tolist(), found.current.tolist()) == ([0, 100, 0, 0], [100, 0, 0, 0])
    counts = np.repeat([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 10)
    assert compare_numbers(counts, counts).labels[:3] == ["< 0", "= 0", "≤ 1"]


def test_ids_beyond_the_most_frequent_twenty_are_the_others():
    reference = np.concatenate([np.repeat(np.arange(100, 120), 3), [7, 8], [-1] * 4])
    found = compare_ids(reference, np.array([100, 119, 7, 999_999, -1, 5]))
    assert found.labels == [*map(str, range(100, 120)), "others", "missing"]
    assert found.reference.tolist() == [3] * 20 + [2, 4]
    assert found.current.tolist() == [1, *[0] * 18, 1, 3, 1]
    nothing = compare_ids(np.array([-1, -1]), np.array([4, -1]))
    assert (nothing.labels, nothing.current.tolist()) == (["others", "missing"], [1, 1])


def test_what_is_missing_everywhere_before_can_be_there_now():
    found = compare_numbers(np.full(10, np.nan), np.array([1.0, np.nan]))
    assert (found.labels, found.current.tolist()) == (["any", "missing"], [1, 1])
    assert found.psi > 0.25


def test_noise_is_what_chance_makes():
    random = np.random.default_rng(0)
    pairs = [compare_numbers(random.normal(size=2_000), random.normal(size=1_000)) for _ in range(100)]
    assert np.mean([pair.psi for pair in pairs]) == pytest.approx(pairs[0].noise, rel=0.15)


@pytest.mark.parametrize(
    ("psi", "noise", "expected"),
    [
        (0.0999, 0.01, "stable"),
        (0.1, 0.0999, "shifted"),
        (0.2499, 0.01, "shifted"),
        (0.25, 0.01, "changed"),
        (0.25, 0.1, "too few rows"),
    ],
)
def test_the_usual_reading_where_chance_would_not_give_it(psi, noise, expected):
    assert reading(psi, noise, DriftSettings()) == expected


def test_a_window_has_no_drift_against_itself(train, tmp_path):
    results = drift_report(train, train, tmp_path / "drift")
    names = {row["name"] for row in results["features"]}
    assert names == {t.name for t in (*REQUEST_TENSORS, *USER_TENSORS, *VIDEO_TENSORS)} - {"now"} | {
        "clicked",
        "watch_seconds",
    }
    assert all(row["psi"] == 0 and row["reading"] == "stable" for row in results["features"])
    assert results["realised"] is None


def test_planted_drift_comes_first_with_its_means(train, tmp_path):
    requests = {**train.requests, "age": train.requests["age"] + 10}
    videos = {**train.impressions, "category": np.full_like(train.impressions["category"], -1)}
    results = drift_report(train, Split(requests, videos), tmp_path / "drift")
    first, second, third = results["features"][:3]
    assert {first["name"], second["name"]} == {"age", "category"}
    assert (first["reading"], second["reading"], third["psi"]) == ("changed", "changed", 0)
    age = next(row for row in results["features"] if row["name"] == "age")
    assert age["current_mean"] == pytest.approx(age["reference_mean"] + 10)
    assert age["reference_mean"] == pytest.approx(np.nanmean(train.requests["age"], dtype=np.float64))
    category = next(row for row in results["features"] if row["name"] == "category")
    assert (category["current_missing"], category["reference_mean"]) == (1, None)
    assert category["reference_missing"] == np.mean(train.impressions["category"] == -1)
    assert json.loads((tmp_path / "drift" / "drift.json").read_text()) == results
    page = (tmp_path / "drift" / "drift.html").read_text()
    assert page.count("<svg") == 6
    assert page.index("<td>category</td>") < page.index("<td>country</td>")


def test_lists_are_lengths_and_times_are_ages(train, monkeypatch):
    monkeypatch.setattr(drift_samples, "READ_ROWS", 100)
    sample = split_sample(train, 10**6, 0)
    lists = train.requests["watched_video_ids"]
    assert sample["watched_video_ids"].tolist() == [(row >= 0).sum() for row in lists]
    assert sample["watched_video_ids"].max() > 1
    request = train.impressions["request"]
    uploaded = train.impressions["upload_time"]
    ages = np.where(uploaded >= 0, train.requests["now"][request] - uploaded, np.nan)
    assert np.array_equal(sample["upload_time"], ages, equal_nan=True)


def test_a_sample_is_bounded_seeded_and_from_the_whole_window(train):
    sample = split_sample(train, 100, 0)
    assert {len(values) for values in sample.values()} <= {99, 100}
    assert np.array_equal(sample["video_id"], split_sample(train, 100, 0)["video_id"])
    assert not np.array_equal(sample["video_id"], split_sample(train, 100, 1)["video_id"])
    counts = np.bincount(drift_samples._drawn(np.random.default_rng(0), 1_000, 100) // 250)
    assert counts == pytest.approx([25] * 4, abs=1)


def test_a_log_of_a_window_has_the_features_of_the_window(dataset, log):
    logged, sample = log_sample(log, 10**6, 0), split_sample(dataset.split("test"), 10**6, 0)
    assert logged.keys() == {tensor.name for tensor in (*REQUEST_TENSORS, *USER_TENSORS)} - {"now"}
    for name, values in logged.items():
        assert values.dtype == sample[name].dtype
        assert np.array_equal(np.sort(values), np.sort(sample[name]), equal_nan=True), name
    drawn = drift_samples._drawn(np.random.default_rng(0), len(logged["signup_time"]), 50)
    assert log_sample(log, 50, 0)["signup_time"].tolist() == logged["signup_time"][drawn].tolist()


def test_a_log_is_compared_in_its_features_alone(train, log, tmp_path):
    results = drift_report(train, log, tmp_path / "drift", settings=DriftSettings(sample_rows=300))
    names = {row["name"] for row in results["features"]}
    assert "watched_video_ids" in names
    assert not names & {"video_id", "category", "clicked"}
    assert results["rows"]["current"] <= 300


def answer(log: RequestLog, user: int, time: datetime, videos: list[int], seconds: list[float]) -> None:
    features = {
        tensor.name: np.zeros((1, *tensor.dims), tensor.dtype) for tensor in (*REQUEST_TENSORS, *USER_TENSORS)
    }
    log.append(features, [recommended(user, videos, seconds)], time)


@pytest.fixture
def served(make_events, shown, tmp_path):
    """Two requests of user 1 and one of user 2, and what was shown and watched after them."""
    with RequestLog(tmp_path / "log", share=1) as log:
        answer(log, 1, NOON, [7, 8, 9], [10.0, 20.0, 30.0])
        answer(log, 1, NOON + 30 * MINUTE, [7], [11.0])
        answer(log, 2, NOON + 11 * HOUR + 45 * MINUTE, [7], [100.0])
        answer(log, 3, NOON, [], [])
    events = make_events(
        [
            shown(1, 7, NOON - MINUTE, 500),  # before any request
            shown(1, 8, NOON, 5),  # 20 s were promised
            shown(1, 7, NOON + 40 * MINUTE, 17),  # 11 s, by the later request
            shown(1, 9, NOON + HOUR + MINUTE, 500),  # too late
            shown(2, 8, NOON + 11 * HOUR + 46 * MINUTE, 500),  # not answered
            shown(2, 7, NOON + 12 * HOUR + 15 * MINUTE),  # 100 s, on the next day, not clicked
        ]
    )
    return tmp_path / "log", events


def test_predictions_meet_the_impressions_that_came_of_them(served):
    assert realised_watch_time(*served, 3_600) == [
        {
            "day": "2026-01-10",
            "impressions": 2,
            "predicted_seconds": 31.0,
            "observed_seconds": 22.0,
            "ratio": 31 / 22,
        },
        {
            "day": "2026-01-11",
            "impressions": 1,
            "predicted_seconds": 100.0,
            "observed_seconds": 0.0,
            "ratio": None,
        },
    ]
    windows = (3_660, 3_659, 600, 599)
    assert [realised_watch_time(*served, window)[0]["impressions"] for window in windows] == [3, 2, 2, 1]


def test_the_report_holds_the_log_against_the_events(train, served, tmp_path):
    log, events = served
    results = drift_report(train, log, tmp_path / "drift", events)
    assert results["realised"]["overall"] == {
        "impressions": 3,
        "predicted_seconds": 131.0,
        "observed_seconds": 22.0,
        "ratio": 131 / 22,
    }
    assert "2026-01-11" in (tmp_path / "drift" / "drift.html").read_text()
    none = drift_report(train, log, tmp_path / "drift", events, DriftSettings(window_seconds=1))
    assert none["realised"]["overall"]["impressions"] == 1


def test_wrong_sides_are_named(train, served, tmp_path):
    with pytest.raises(InputError, match="Only a request log has predictions"):
        drift_report(train, train, tmp_path / "drift", served[1])
    with pytest.raises(InputError, match="no request log in"):
        drift_report(train, tmp_path, tmp_path / "drift")
    empty = Split(
        {name: column[:0] for name, column in train.requests.items()},
        {name: column[:0] for name, column in train.impressions.items()},
    )
    with pytest.raises(InputError, match="no rows"):
        drift_report(train, empty, tmp_path / "drift")
