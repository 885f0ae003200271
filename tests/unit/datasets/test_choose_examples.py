"""The rules of candidate generation's examples, on hand-made logs."""

import ibis
import pandas as pd

from watchrank.datasets.candidates import choose_examples


def chosen(*watches, max_a_user=50):
    """Watches as (user, video, time, counts); returns {(user, video): split}."""
    rows = [(*watch[:3], -1, watch[3] if len(watch) > 3 else True) for watch in watches]
    frame = pd.DataFrame(rows, columns=["user_id", "video_id", "timestamp_us", "place", "counts"])
    found = choose_examples(ibis.memtable(frame.sample(frac=1, random_state=0)), max_a_user).to_pandas()
    return {(row.user_id, row.video_id): row.split for row in found.itertuples()}


def test_each_users_last_watch_is_the_test_and_the_one_before_it_validation():
    assert chosen((1, 10, 5), (1, 11, 7), (1, 12, 9), (2, 10, 8), (2, 13, 6)) == {
        (1, 10): "train",
        (1, 11): "validation",
        (1, 12): "test",
        (2, 13): "train",
        (2, 10): "test",
    }


def test_the_only_watch_of_a_user_is_held_out():
    assert chosen((1, 10, 5)) == {(1, 10): "test"}


def test_a_watch_that_was_not_completed_is_no_example_and_is_not_held_out():
    assert chosen((1, 10, 5), (1, 11, 7), (1, 12, 9, False)) == {(1, 10): "train", (1, 11): "test"}


def test_a_video_counts_the_first_time_only():
    assert chosen((1, 10, 5), (1, 11, 7), (1, 10, 9)) == {(1, 10): "train", (1, 11): "test"}


def test_a_video_that_was_opened_before_it_was_completed_is_no_example():
    assert chosen((1, 10, 5, False), (1, 11, 6), (1, 12, 7), (1, 10, 9)) == {
        (1, 11): "train",
        (1, 12): "test",
    }


def test_a_user_gives_a_fixed_number_of_training_examples_the_latest():
    splits = chosen(*((1, 100 + time, time) for time in range(8)), (2, 100, 3), max_a_user=2)
    assert [splits[1, 100 + time] for time in range(8)] == ["none"] * 4 + ["train"] * 2 + [
        "validation",
        "test",
    ]
    assert splits[2, 100] == "test"


def test_watches_of_one_time_keep_their_place():
    frame = pd.DataFrame(
        {"user_id": 1, "video_id": [7, 8, 9], "timestamp_us": 5, "place": [2, 0, 1], "counts": True}
    )
    found = choose_examples(ibis.memtable(frame), 50).to_pandas()
    splits = dict(zip(found["video_id"], found["split"], strict=True))
    assert splits == {8: "train", 9: "validation", 7: "test"}
