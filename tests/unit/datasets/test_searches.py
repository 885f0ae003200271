from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from watchrank.config import SplitSettings, TextSettings
from watchrank.datasets import searches as module
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.errors import AbsentError, InputError
from watchrank.models.text.tokens import ngram_ids, query_ids
from watchrank.models.text.two_towers import TITLE
from watchrank.schema import PAD_ID, text_id

START = datetime(2026, 1, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SPLIT = SplitSettings(test_days=1, validation_days=1)
TEXT = TextSettings(max_words=5, max_ngrams=6)
TITLES = {1: "Bread soup", 2: "Piano concert", 3: "面包食谱", 4: None, 5: "", 6: "?!", 7: "nobody saw this"}
VIDEOS = [
    {"video_id": video, "channel_id": 100 + video, "duration_seconds": 60.0, "title": title, "category": "c"}
    for video, title in TITLES.items()
]


@pytest.fixture(scope="module")
def build(make_events, shown, tmp_path_factory):
    """Return a function that builds the dataset of some clicks (user, video, seconds from the start) and
    searches (user, query, seconds, video it opened), on three days; user 9 searches on the first and last."""

    def make(clicks=(), asked=(), text=TEXT, of_nine=True, **tables):
        at = [*((9, 1, day * 86_400) for day in range(3)), *clicks]
        told = [1] if any(opened for _, _, _, *opened in asked) else []
        asked = [*asked, *((9, "nine", day * 86_400 - 5, *told) for day in (0, 2) if of_nine)]
        rows = [shown(user, video, START + timedelta(seconds=second), 5.0) for user, video, second in at]
        searches = [
            {"user_id": user, "timestamp": START + timedelta(seconds=second), "query": query}
            | ({"clicked_video_id": opened[0]} if opened else {})
            for user, query, second, *opened in asked
        ]
        rows += tables.pop("unclicked", [])
        events = make_events(rows, searches=searches, videos=tables.pop("videos", VIDEOS))
        folder = tmp_path_factory.mktemp("searches") / "dataset"
        build_search_dataset(events, folder, text, SPLIT)
        data = SearchDataset.open(folder)
        texts = {query_ids([query]).tobytes(): query for _, query, *_ in asked}
        return data, {name: examples(data, name, texts) for name in ("train", "validation", "test")}

    return make


def read(text):
    ids = np.full((1, TEXT.max_words, TEXT.max_ngrams), PAD_ID)
    own = ngram_ids([text], max_words=TEXT.max_words, max_ngrams=TEXT.max_ngrams)
    ids[:, : own.shape[1], : own.shape[2]] = own
    return ids[0]


def examples(data, split, texts):
    """(user, query, video, seconds from the start) of a split."""
    found = data.split(split)
    videos = data.documents["video_id"]
    rows = zip(found["user_id"], found["query"], found["document"], found["now"], strict=True)
    return [
        (int(user), texts[data.queries[query].tobytes()], int(videos[document]), int(now - START.timestamp()))
        for user, query, document, now in rows
        if user != 9
    ]


def test_the_watch_is_the_first_click_after_the_search_within_the_time_and_before_the_next_search(build):
    clicks = [
        (1, 3, -30),  # before the search
        (1, 2, 0),  # at its instant
        (1, 1, 60),
        (1, 2, 90),  # not the first
        (2, 2, 30),  # another user's
        (3, 1, 601),  # too late
        (4, 2, 50),
        (5, 2, 600),  # just in time
    ]
    asked = [(1, "bread", 0), (3, "bread", 0), (4, "bread", 0), (4, "piano", 20), (5, "piano", 0)]
    _, found = build(clicks, asked)
    assert sorted(found["train"]) == [(1, "bread", 1, 60), (4, "piano", 2, 50), (5, "piano", 2, 600)]
    assert found["validation"] == found["test"] == []


def test_what_was_shown_but_not_opened_is_no_watch(build, shown):
    unclicked = [shown(1, 2, START + timedelta(seconds=10))]
    _, found = build([(1, 1, 20)], [(1, "bread", 0)], unclicked=unclicked)
    assert found["train"] == [(1, "bread", 1, 20)]


def test_what_the_log_tells_goes_before_the_first_click_unless_the_settings_say_otherwise(build):
    clicks, asked = [(1, 1, 60), (2, 2, 60)], [(1, "bread", 0, 3), (2, "bread", 0, None)]
    for positive, expected in (
        ("auto", [(1, "bread", 3, 0)]),
        ("told", [(1, "bread", 3, 0)]),
        ("first_click", [(1, "bread", 1, 60), (2, "bread", 2, 60)]),
    ):
        _, found = build(clicks, asked, TEXT.model_copy(update={"positive": positive}))
        assert found["train"] == expected
    with pytest.raises(InputError, match=r"no searches.clicked_video_id; set text.positive to first_click"):
        build(clicks, [(1, "bread", 0)], TEXT.model_copy(update={"positive": "told"}))


def test_an_example_is_of_the_window_in_which_its_watch_was_known(build):
    midnight = 12 * 3_600
    clicks = [(1, 1, 5), (2, 2, midnight - 1), (3, 2, midnight), (4, 1, midnight + 86_400)]
    asked = [(1, "bread", 0), (2, "piano", midnight - 9), (3, "bread", midnight - 9), (4, "piano", midnight)]
    asked[3] = (4, "piano", midnight + 86_400 - 9)
    data, found = build(clicks, asked)
    assert [len(found[name]) for name in ("train", "validation", "test")] == [2, 1, 1]
    assert found["train"][1] == (2, "piano", 2, midnight - 1)
    assert found["validation"] == [(3, "bread", 2, midnight)]
    assert found["test"] == [(4, "piano", 1, midnight + 86_400)]
    assert data.split("train")["now"].max() < data.split("validation")["now"].min()


def test_the_documents_are_all_videos_with_words_in_their_title_watched_or_not(build):
    asked = [(1, "bread", 0, 1), (1, "piano", 5, 4), (1, "?!", 7, 1), (1, "soup", 9, 6)]
    videos = [*VIDEOS, {"video_id": 8, "channel_id": 5, "title": "no category"}]
    data, found = build(asked=asked, videos=videos)
    documents = data.documents
    assert documents["video_id"].tolist() == [1, 2, 3, 7, 8]
    for row, video in enumerate(documents["video_id"].tolist()):
        assert (documents[TITLE][row] == read((TITLES | {8: "no category"})[video])).all()
    assert documents["channel_id"].tolist() == [101, 102, 103, 107, 5]
    assert documents["category"].tolist() == [text_id("c")] * 4 + [PAD_ID]
    assert found["train"] == [(1, "bread", 1, 0)]
    assert data.manifest["documents"]["without_words"] == 3
    assert data.manifest["left_out"] == 3, "without a document, or without words"


def test_a_dataset_is_the_same_however_many_rows_are_held_at_once(build, monkeypatch):
    asked = [(user, ("bread", "piano", "?!", "soup")[user % 4], user, 1 + user % 7) for user in range(10, 40)]
    whole, _ = build(asked=asked)
    monkeypatch.setattr(module, "READ_ROWS", 4)
    parts, found = build(asked=asked)
    assert parts.manifest == whole.manifest
    assert sum(map(len, found.values())) + whole.manifest["left_out"] == len(asked)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({}, "have no searches; ingest a log with them or leave text matching out"),
        ({"asked": [(1, "bread", 0, 1)], "videos": [{"video_id": 1}]}, "have no titles"),
        (
            {"asked": [(1, "bread", 0, None), (1, "soup", 9, 4)]},
            "in the days to train and to test, no search",
        ),
        ({"asked": [(1, "bread", 2 * 86_400, 1)]}, "in the days to train, no search that led to a watch"),
        ({"asked": [(1, "bread", 0, 1)]}, "in the days to test, no search that led to a watch"),
    ],
)
def test_a_log_that_text_matching_cannot_learn_from_is_told_in_one_sentence(build, tables, sentence):
    with pytest.raises(AbsentError, match=sentence):
        build(**tables, of_nine=False)


def test_without_a_dataset_the_command_is_named(tmp_path):
    with pytest.raises(InputError, match="run `watchrank search-dataset`"):
        SearchDataset.open(tmp_path)
