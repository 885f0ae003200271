import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from watchrank import schema
from watchrank.config import SimulationSettings
from watchrank.errors import InputError
from watchrank.simulation import simulate
from watchrank.simulation.audience import Requests, distinct_times, make_audience
from watchrank.simulation.behaviour import SURFACE_LOGITS, search
from watchrank.simulation.catalogue import DAY_MS, TITLE_WORDS, make_catalogue
from watchrank.simulation.slates import Shelf

SMALL = SimulationSettings(
    seed=7, days=10, impressions=80_000, users=1_200, videos=800, channels=80, chunk_impressions=30_000
)
TINY = SMALL.model_copy(update={"impressions": 4_000, "users": 60, "videos": 200, "chunk_impressions": 1_500})
ARROW_TYPES = {
    "int64": "int64",
    "float64": "double",
    "bool": "bool",
    "string": "string",
    "timestamp": "timestamp[us, tz=UTC]",
}
KEY = ["user_id", "video_id", "timestamp"]


def run(folder: Path, settings: SimulationSettings) -> Path:
    simulate(folder / "log", folder / "truth", settings)
    return folder


def read(path: Path) -> pd.DataFrame:
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    rows: pd.DataFrame = pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)
    return rows


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def shown(small: Path) -> pd.DataFrame:
    """Impressions with their truth, video and user, in the order of the files."""
    rows = read(small / "log/impressions")
    truth = read(small / "truth")
    rows["expected"], rows["probability"] = truth["expected_watch_seconds"], truth["click_probability"]
    rows = rows.merge(read(small / "log/videos.parquet"), on="video_id", how="left", validate="many_to_one")
    users = read(small / "log/users.parquet").rename(columns={"language": "user_language"})
    rows = rows.merge(users, on="user_id", how="left", validate="many_to_one")
    rows["same_language"] = rows["language"] == rows["user_language"]
    rows["age_days"] = (rows["timestamp"] - rows["upload_time"]).dt.total_seconds() / 86_400
    rows["earlier"] = rows.groupby(["user_id", "video_id"]).cumcount()
    return rows


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = run(tmp_path / "first", TINY), run(tmp_path / "again", TINY)
    assert digests(first) == digests(again)


def test_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    first = digests(run(tmp_path / "first", TINY))
    other = digests(run(tmp_path / "other", TINY.model_copy(update={"seed": 8})))
    assert all(digest != other.get(name) for name, digest in first.items())


@pytest.mark.parametrize("table", schema.LOG_TABLES, ids=lambda table: table.name)
def test_columns_are_those_of_the_schema(small: Path, table: schema.Table) -> None:
    path = small / "log" / table.name
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path.with_suffix(".parquet")]
    for file in files:
        written = {field.name: str(field.type) for field in pq.read_schema(file)}
        assert list(written) == table.names
        assert written == {column.name: ARROW_TYPES[column.dtype] for column in table.columns}


@pytest.mark.parametrize("table", schema.LOG_TABLES, ids=lambda table: table.name)
def test_rows_keep_the_schemas_rules(small: Path, table: schema.Table) -> None:
    path = small / "log" / table.name
    rows = read(path if path.is_dir() else path.with_suffix(".parquet"))
    assert len(rows) > 0
    assert not rows.duplicated(list(table.key)).any()
    for column in table.columns:
        values = rows[column.name]
        assert column.nullable or values.notna().all()
        assert values.notna().any()
        if column.minimum is not None:
            assert values.min() >= column.minimum


def test_number_of_impressions(small: Path) -> None:
    assert len(read(small / "log/impressions")) == 80_000  # 10 000 requests of 8


def test_truth_follows_the_impressions_row_by_row(small: Path) -> None:
    parts = sorted((small / "log/impressions").iterdir())
    truths = sorted((small / "truth").iterdir())
    assert [path.name for path in parts] == [path.name for path in truths]
    for part, truth in zip(parts, truths, strict=True):
        assert read(part)[KEY].equals(read(truth)[KEY])
    assert list(read(truths[0])) == [*KEY, "expected_watch_seconds", "click_probability"]


def assert_unbiased(observed: pd.Series, expected: pd.Series) -> None:
    """Allow four standard errors: there are some fifty comparisons."""
    error = observed - expected
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))


@pytest.mark.parametrize("group", [None, "surface", "same_language", "candidate_source", "device", "decile"])
def test_truth_is_the_mean_of_what_happens(shown: pd.DataFrame, group: str | None) -> None:
    rows = shown.assign(decile=pd.qcut(shown["expected"], 10, labels=False))
    groups = [rows] if group is None else [part for _, part in rows.groupby(group)]
    for part in groups:
        assert len(part) > 1_000
        assert_unbiased(part["watch_seconds"], part["expected"])
        assert_unbiased(part["clicked"].astype(float), part["probability"])


def test_click_rates_of_the_surfaces(shown: pd.DataFrame) -> None:
    rates = shown.groupby("surface")["clicked"].mean()
    assert 0.03 < rates["home"] < 0.07
    assert 0.42 < rates["feed"] < 0.58
    assert abs((shown["surface"] == "feed").mean() - 0.25) < 0.03


def test_expected_watch_time_is_wide_and_of_a_sensible_size(shown: pd.DataFrame) -> None:
    assert 5 < shown["expected"].mean() < 60
    low, high = shown["expected"].quantile([0.1, 0.9])
    assert high > 20 * low


def test_a_slate_has_one_time_one_surface_and_different_videos(shown: pd.DataFrame) -> None:
    slates = shown.groupby(["user_id", "timestamp"])
    assert (slates.size() == SMALL.slate).all()
    assert (slates["video_id"].nunique() == SMALL.slate).all()
    assert (slates["surface"].nunique() == 1).all()
    assert (slates["position"].agg(list).map(tuple) == tuple(range(SMALL.slate))).all()
    assert (shown["timestamp"].dt.microsecond % 1_000 == 0).all()


def test_times_lie_in_the_log_and_after_the_upload(small: Path, shown: pd.DataFrame) -> None:
    start = pd.Timestamp(SMALL.start, tz="UTC")
    end = start + pd.Timedelta(days=SMALL.days)
    searched = read(small / "log/searches")["timestamp"]
    for times in (shown["timestamp"], searched):
        assert times.between(start, end, inclusive="left").all()
    assert set(shown["timestamp"].dt.date) == set(pd.date_range(start, periods=SMALL.days).date)
    assert (shown["age_days"] > 0).all()
    assert (shown["signup_time"] < start).all()


def test_uploads_lie_long_before_and_in_the_log(small: Path) -> None:
    uploads = read(small / "log/videos.parquet")["upload_time"]
    start = pd.Timestamp(SMALL.start, tz="UTC")
    assert abs((uploads < start - pd.Timedelta(days=30)).mean() - 0.3) < 0.01
    assert 0.25 < (uploads >= start).mean() < 0.45


def logit_without_moving_parts(shown: pd.DataFrame) -> pd.Series:
    """What the click model, written anew here, leaves of the logit: quality, language, channel, taste."""
    moving = (
        shown["surface"].map({"home": SURFACE_LOGITS[0], "feed": SURFACE_LOGITS[1]})
        + 1.2 * np.exp(-shown["age_days"] / 2)
        - 0.8 * np.log(1 + shown["earlier"])
        - 0.25 * np.log(1 + shown["position"])
    )
    fixed: pd.Series = np.log(shown["probability"] / (1 - shown["probability"])) - moving
    return fixed


def test_clicks_of_one_user_and_video_follow_the_stated_model(shown: pd.DataFrame) -> None:
    """Between two impressions of one user and video only surface, age, fatigue and position differ."""
    fixed = logit_without_moving_parts(shown).groupby([shown["user_id"], shown["video_id"]])
    assert (shown["earlier"] > 0).sum() > 1_000
    assert (fixed.max() - fixed.min()).max() < 1e-6


def taste_of_random_videos(shown: pd.DataFrame, logit: pd.Series) -> pd.Series:
    """What is left of a logit per user and category; random videos are rarely of a favourite channel."""
    own = logit - logit.groupby(shown["video_id"]).transform("mean")
    return own[shown["candidate_source"] == "explore"].groupby([shown["user_id"], shown["category"]]).mean()


def test_category_tastes_move_the_clicks(shown: pd.DataFrame) -> None:
    logit = logit_without_moving_parts(shown) - 0.9 * shown["same_language"]
    assert 0.5 < taste_of_random_videos(shown, logit).std() < 0.8  # 0.6 times a normal taste


def test_watched_share_follows_the_stated_model(shown: pd.DataFrame) -> None:
    share = shown["expected"] / (shown["probability"] * shown["duration_seconds"])
    by_pair = share.groupby([shown["user_id"], shown["video_id"]])
    assert (by_pair.max() - by_pair.min()).max() < 1e-9
    patience = shown["device"].map({"phone": -0.1, "desktop": 0.0, "tablet": 0.1, "tv": 0.3})
    logit = np.log(share / (1 - share))
    assert np.abs(logit).max() < 2.5 + 1e-9
    taste = taste_of_random_videos(shown, logit - 0.8 * shown["same_language"] - patience)
    assert 0.3 < taste.std() < 0.5  # 0.4 times a normal taste


def test_fatigue_lowers_the_click_probability(shown: pd.DataFrame) -> None:
    repeats = shown.sort_values("timestamp").groupby(["user_id", "video_id", "surface", "position"])
    first, last = repeats["probability"].first(), repeats["probability"].last()
    again = repeats.size() > 1
    assert again.sum() > 20
    assert (last[again] < first[again]).all()


def test_what_a_ranker_should_learn_moves_the_expected_watch_time(shown: pd.DataFrame) -> None:
    expected = shown["expected"]
    language = expected.groupby(shown["same_language"]).mean()
    assert language[True] > 1.5 * language[False]
    source = expected.groupby(shown["candidate_source"]).mean()
    assert source["favourites"] > 1.5 * source["explore"]
    fresh = expected[shown["age_days"] < 1].mean()
    assert fresh > 1.2 * expected[shown["age_days"] > 10].mean()
    by_video = expected.groupby(shown["video_id"]).agg(["mean", "size"])
    common = by_video.loc[by_video["size"] >= 30, "mean"]
    assert common.quantile(0.9) > 2.5 * common.quantile(0.1)


def test_fresh_videos_are_shown_more(small: Path, shown: pd.DataFrame) -> None:
    """Of the uploads on the log's first day: impressions in the first day of life against the ninth."""
    uploads = read(small / "log/videos.parquet")["upload_time"]
    start = pd.Timestamp(SMALL.start, tz="UTC")
    popular = shown[shown["candidate_source"] == "popular"]
    first_day = popular[popular["upload_time"].between(start, start + pd.Timedelta(days=1))]
    assert uploads.between(start, start + pd.Timedelta(days=1)).sum() > 10
    assert (first_day["age_days"] < 1).sum() > 1.5 * first_day["age_days"].between(8, 9).sum()


def test_the_user_decides_what_is_shown(shown: pd.DataFrame) -> None:
    same_language = shown.groupby("candidate_source")["same_language"].mean()
    assert same_language["popular"] > 0.85
    assert same_language["favourites"] > 0.75
    assert same_language["explore"] < 0.5
    favourites = shown[shown["candidate_source"] == "favourites"]
    assert favourites.groupby("user_id")["channel_id"].nunique().max() <= 5


def test_watches_are_within_the_duration_and_some_are_complete(shown: pd.DataFrame) -> None:
    share = shown["watch_seconds"] / shown["duration_seconds"]
    assert (share[~shown["clicked"]] == 0).all()
    assert (share <= 1).all()
    assert (share[shown["clicked"]] > 0.95).mean() > 0.03
    assert 120 < shown["duration_seconds"].median() < 480


def test_reactions_need_a_click(shown: pd.DataFrame) -> None:
    for reaction in ("liked", "followed", "long_view"):
        assert not shown.loc[~shown["clicked"], reaction].any()
        assert 0.002 < shown.loc[shown["clicked"], reaction].mean() < 0.6


def test_search_words_come_from_titles(small: Path) -> None:
    videos = read(small / "log/videos.parquet").set_index("video_id")
    searches = read(small / "log/searches")
    titles = "\n".join(videos["title"]).lower()
    assert all(query and query in titles for query in searches["query"])
    opened = searches.dropna(subset="clicked_video_id")
    assert 0.4 < len(opened) / len(searches) < 0.8
    found = videos.loc[opened["clicked_video_id"].astype("int64")]
    assert all(query in title.lower() for query, title in zip(opened["query"], found["title"], strict=True))
    assert (found["upload_time"].to_numpy() < opened["timestamp"].to_numpy()).all()


def test_searches_tell_of_the_user(small: Path) -> None:
    searches = read(small / "log/searches").dropna(subset="clicked_video_id")
    searches["video_id"] = searches["clicked_video_id"].astype("int64")
    rows = searches.merge(read(small / "log/videos.parquet"), on="video_id")
    rows = rows.merge(read(small / "log/users.parquet"), on="user_id", suffixes=("_video", "_user"))
    assert (rows["language_video"] == rows["language_user"]).mean() > 0.8


def test_titles_are_in_the_videos_language(small: Path) -> None:
    videos = read(small / "log/videos.parquet")
    assert set(videos["language"]) == {"en", "zh", "es"}
    chinese = videos["title"].str.fullmatch(r"[一-鿿]+")
    assert (chinese == (videos["language"] == "zh")).all()
    assert (videos.loc[~chinese, "title"].str.count(" ") == TITLE_WORDS - 1).all()
    assert videos["title"].str.contains("í|ó|é|ñ").any()


def test_ids_are_sparse_and_some_ages_are_missing(small: Path) -> None:
    videos, users = read(small / "log/videos.parquet"), read(small / "log/users.parquet")
    assert videos["video_id"].is_unique
    assert 2**39 < videos["video_id"].max() < 2**40
    assert len(users) == SMALL.users
    assert 0.01 < users["age"].isna().mean() < 0.1
    assert 0.03 < users["gender"].isna().mean() < 0.15


def test_smaller_chunks_give_more_files_and_as_many_rows(tmp_path: Path, small: Path) -> None:
    settings = SMALL.model_copy(update={"chunk_impressions": 10_000})
    finer = run(tmp_path, settings)
    parts = {folder: sorted((folder / "log/impressions").iterdir()) for folder in (small, finer)}
    assert len(parts[finer]) > 2 * len(parts[small]) >= 6
    for folder, limit in ((small, 30_000), (finer, 10_000)):
        rows = [pq.read_metadata(path).num_rows for path in parts[folder]]
        assert sum(rows) == 80_000
        assert max(rows) <= limit
        assert len(list((folder / "log/searches").iterdir())) == len(rows)
        assert len(list((folder / "truth").iterdir())) == len(rows)
    assert read(finer / "log/users.parquet")["user_id"].tolist() == list(range(1, SMALL.users + 1))


def test_every_chunk_draws_anew(tmp_path: Path) -> None:
    folder = run(tmp_path, TINY.model_copy(update={"chunk_impressions": 1}))  # a chunk for every user
    users = read(folder / "log/users.parquet")
    assert len(list((folder / "truth").iterdir())) == len(users) == TINY.users
    assert users["age"].nunique() > 20


def test_a_new_run_leaves_no_part_of_the_old_one(tmp_path: Path) -> None:
    run(tmp_path / "again", TINY.model_copy(update={"chunk_impressions": 500}))
    one_part = TINY.model_copy(update={"chunk_impressions": 1_000_000})
    again, once = run(tmp_path / "again", one_part), run(tmp_path / "once", one_part)
    assert digests(again) == digests(once)


def test_a_catalogue_no_larger_than_the_slate_is_shown_whole(tmp_path: Path) -> None:
    settings = SimulationSettings(impressions=400, users=5, videos=8, channels=3, slate=8)
    rows = read(run(tmp_path, settings) / "log/impressions")
    assert (rows.groupby(["user_id", "timestamp"])["video_id"].nunique() == 8).all()


def test_idle_users_and_empty_chunks(tmp_path: Path) -> None:
    settings = SimulationSettings(impressions=8, users=300, videos=20, channels=3, chunk_impressions=400)
    folder = run(tmp_path, settings)
    assert len(read(folder / "log/users.parquet")) == 300
    assert len(read(folder / "log/impressions")) == 8
    assert len(list((folder / "truth").iterdir())) == 7  # (300 users + 1 request) * 8 / 400


def test_requests_of_one_user_at_one_time_are_moved_apart() -> None:
    times = distinct_times(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 3, 5, 0]))
    assert times.tolist() == [3, 5, 6, 0, 5]


def test_no_search_after_the_end_of_the_log() -> None:
    rng = np.random.default_rng(0)
    catalogue = make_catalogue(TINY, rng)
    audience = make_audience(0, 1, catalogue, rng)
    end_ms = TINY.days * DAY_MS
    requests = Requests(
        users=np.zeros(500, np.int64),
        time_ms=end_ms - 30_000 + np.arange(500),
        surfaces=np.zeros(500, np.int64),
    )
    times = search(requests, audience, catalogue, Shelf(catalogue), end_ms, rng)["timestamp"]
    assert 20 < len(times) < 80  # a fifth search, half of them within the 30 seconds left
    assert times.max() < end_ms


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slate": 201}, "slate is 201 but there are 200 videos"),
        ({"impressions": 5}, "impressions is 5, less than one slate of 8"),
        ({"seed": -1}, "seed is -1"),
        ({"start": "1970-01-01"}, "start is 1970-01-01"),
    ],
)
def test_impossible_settings(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    settings = SimulationSettings.model_validate({**TINY.model_dump(), **wrong})
    with pytest.raises(InputError, match=message):
        run(tmp_path, settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("truth", ["log", "log/truth", "."])
def test_the_truth_stays_apart_from_the_log(tmp_path: Path, truth: str) -> None:
    with pytest.raises(InputError, match="keep them apart"):
        simulate(tmp_path / "log", tmp_path / truth, TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["truth", "log/impressions", "log/searches"])
def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt is no part of a simulated log"):
        run(tmp_path, TINY)
    assert list(digests(tmp_path)) == [f"{folder}/thesis.txt"]


@pytest.mark.parametrize("path", ["truth", "log"])
def test_a_file_in_place_of_a_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / path).write_text("mine")
    with pytest.raises(InputError, match="is a file, not a folder"):
        run(tmp_path, TINY)
