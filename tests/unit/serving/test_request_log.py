import logging
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest

from watchrank.errors import InputError
from watchrank.schema import REQUEST_TENSORS, USER_TENSORS
from watchrank.serving.question import Recommendation
from watchrank.serving.request_log import RequestLog, read_log
from watchrank.serving.request_table import logged_features

NOON = datetime(2026, 1, 10, 12, 0, 0, 123_456, tzinfo=UTC)


def request(users: list[int]) -> dict[str, np.ndarray]:
    """Features that tell the user and the place in the list."""
    features = {}
    for tensor in (*REQUEST_TENSORS, *USER_TENSORS):
        values = np.array(users)[:, None] * 1_000 + np.arange(tensor.dims[0])
        features[tensor.name] = values.astype(tensor.dtype)
    features["age"][0] = np.nan
    return features


def answer(user: int, videos: list[int], release: int = 3) -> Recommendation:
    return Recommendation(
        user_id=user,
        video_ids=videos,
        expected_watch_seconds=[1.5] * len(videos),
        candidate_scores=[user / 2] * len(videos),
        release=release,
    )


def append(log: RequestLog, users: list[int]) -> None:
    answers = [answer(user, [user, user + 1][: 1 + user % 2], release=user + 100) for user in users]
    log.append(request(users), answers, NOON)


def test_a_row_holds_what_was_sent_and_answered(tmp_path):
    with RequestLog(tmp_path / "log", share=1) as log:
        append(log, [7, 8])
        append(log, [9])
    rows = read_log(tmp_path / "log").to_table().sort_by("user_id")
    assert rows["user_id"].to_pylist() == [7, 8, 9]
    assert rows["timestamp"].to_pylist() == [NOON] * 3
    assert str(rows.schema.field("timestamp").type) == "timestamp[us, tz=UTC]"
    assert rows["release"].to_pylist() == [107, 108, 109]
    assert rows["video_ids"].to_pylist() == [[7, 8], [8], [9, 10]]
    assert rows["expected_watch_seconds"].to_pylist() == [[1.5, 1.5], [1.5], [1.5, 1.5]]
    assert rows["candidate_scores"].to_pylist() == [[3.5, 3.5], [4.0], [4.5, 4.5]]
    logged = logged_features(rows)
    sent = [request([7, 8]), request([9])]
    for tensor in (*REQUEST_TENSORS, *USER_TENSORS):
        expected = np.concatenate([part[tensor.name] for part in sent])
        found = logged[tensor.name].reshape(expected.shape)
        assert np.array_equal(found, expected, equal_nan=tensor.dtype == "float32"), tensor.name
        assert logged[tensor.name].dtype == tensor.dtype


def test_logged_features_are_the_columns_of_a_training_request(prepared, tmp_path):
    """Features from the online store, logged and read back, have the dataset's columns, dtypes and shapes."""
    from watchrank.datasets.ranking import RankingDataset
    from watchrank.feature_store import online_user_features

    features = online_user_features(prepared.store, [1, 2])
    context = {"now": np.full((2, 1), 5), "surface": np.full((2, 1), -1)}
    with RequestLog(tmp_path, share=1) as log:
        log.append(features | context, [answer(1, [4]), answer(2, [])])
    logged = logged_features(read_log(tmp_path).to_table())
    trained = RankingDataset.open(prepared.place.dataset).split("train").requests
    assert logged.keys() == trained.keys()
    for name, column in trained.items():
        assert (logged[name].dtype, logged[name].shape[1:]) == (column.dtype, column.shape[1:]), name


def test_a_user_is_in_or_out_for_good_and_in_at_every_larger_share(tmp_path):
    users = range(20_000)
    kept = {share: set(filter(RequestLog(tmp_path, share).keeps, users)) for share in (0, 0.1, 0.3, 1)}
    assert len(kept[0]) == 0
    assert len(kept[0.1]) == pytest.approx(2_000, abs=150)
    assert kept[0.1] < kept[0.3] < kept[1] == set(users)
    assert sorted(kept[0.1])[:5] == [13, 25, 27, 35, 44]
    with RequestLog(tmp_path, 0.1) as log:
        append(log, list(range(40)))
        append(log, list(range(40)))
    assert sorted(read_log(tmp_path).to_table()["user_id"].to_pylist()) == [13, 13, 25, 25, 27, 27, 35, 35]


def test_a_file_is_written_at_its_rows_and_the_rest_on_flush(tmp_path):
    log = RequestLog(tmp_path, share=1, rows_a_file=3)
    append(log, [1, 2])
    assert list(tmp_path.iterdir()) == []
    append(log, [3])
    assert read_log(tmp_path).count_rows() == 3
    append(log, [4])
    log.flush()
    assert len(list(tmp_path.iterdir())) == 2
    log.close()
    append(log, [5])
    assert (read_log(tmp_path).count_rows(), log.dropped) == (4, 1)


def test_threads_lose_nothing(tmp_path):
    with RequestLog(tmp_path, share=1, rows_a_file=7) as log, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda user: append(log, [user]), range(200)))
    assert sorted(read_log(tmp_path).to_table()["user_id"].to_pylist()) == list(range(200))
    assert log.dropped == 0


def test_logs_of_several_processes_can_share_a_folder(tmp_path):
    """Written in the same second, no file takes the place of another."""
    for user in range(12):
        with RequestLog(tmp_path, share=1) as log:
            append(log, [user])
    assert sorted(read_log(tmp_path).to_table()["user_id"].to_pylist()) == list(range(12))


@contextmanager
def files_of_at_most(size: int):
    """Make the system refuse longer files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_drops_rows_with_one_warning_and_serving_goes_on(tmp_path, caplog):
    log = RequestLog(tmp_path / "log", share=1, rows_a_file=2)
    with caplog.at_level(logging.WARNING), files_of_at_most(1_000):
        append(log, [1, 2])
        append(log, [3, 4, 5])
    assert log.dropped == 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert list((tmp_path / "log").iterdir()) == []
    append(log, [6, 7])
    assert read_log(tmp_path / "log").to_table()["user_id"].to_pylist() == [6, 7]


def test_wrong_arguments_are_named(tmp_path):
    log = RequestLog(tmp_path, share=1)
    features, answers = request([1]), [answer(1, [4])]
    with pytest.raises(InputError, match=r"'watched_times' of shape \(1, 3\); give \(1, 50\)"):
        log.append(features | {"watched_times": np.zeros((1, 3))}, answers)
    with pytest.raises(InputError, match=r"'now' of shape \(1, 1\); give \(2, 1\)"):
        log.append(features, answers * 2)
    del features["surface"]
    with pytest.raises(InputError, match="'surface' of shape None"):
        log.append(features, answers)
    with pytest.raises(InputError, match=r"share 1\.5"):
        RequestLog(tmp_path, share=1.5)
    with pytest.raises(InputError, match="no request log in"):
        read_log(tmp_path)
