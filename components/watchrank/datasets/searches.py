"""The examples of text matching: a search, and the video that was watched because of it.

```
<dataset>/manifest.json            its splits, what was left out, how texts were read
<dataset>/documents/<column>.npy   the videos with a title [N], sorted by `video_id`: n-grams, side fields
<dataset>/queries/<column>.npy     n-grams of the distinct queries [Q]
<dataset>/<split>/<column>.npy     examples [E] in order of time: `query` and `document`, rows of the above,
                                   `user_id` and `now`, when the watch was known
```
The rules: where the log tells which video was opened from the results, `searches.clicked_video_id`, that is
the watch; a search without one is no example. Where it does not tell, the watch is the user's first click
after the search, within `text.click_seconds` and before the user's next search. An example belongs to the
ranker's window (`split`) in which its watch was known, so that nothing from validation or test is learnt.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from watchrank import events as event_files
from watchrank.config import EngineSettings, SplitSettings, TextSettings
from watchrank.datasets.columns import Columns, ColumnWriter, read_columns, read_dataset
from watchrank.datasets.windows import SPLITS, Limits, between, split_days, uploaded_before, window
from watchrank.engine import Engine, connect
from watchrank.errors import AbsentError, InputError
from watchrank.features.text import text_ids
from watchrank.models.text.tokens import ngram_ids
from watchrank.models.text.two_towers import QUERY, TITLE
from watchrank.schema import PAD_ID, SEARCH_NGRAMS, SEARCH_WORDS, SEARCHES
from watchrank.storage import atomic_path, reading, write_json, writing

READ_ROWS = 20_000
"""Texts, or examples, that are held at once."""

FIELDS = ("channel_id", "category")
"""What a document has beside its title, where the log has it."""


@dataclass(frozen=True)
class SearchDataset:
    """A dataset on disk."""

    path: Path
    manifest: dict[str, Any]
    tables: dict[str, Columns]

    @classmethod
    def open(cls, path: Path) -> "SearchDataset":
        """Open what `build_search_dataset` wrote, as a whole.

        Raises:
            InputError: there is no dataset, or a column is damaged.
        """
        return cls(path, *read_dataset(path, "search-dataset"))

    @property
    def documents(self) -> Columns:
        """The videos with a title [N]: `video_id`, sorted, `title_ngram_ids` [N, L, G] and `FIELDS` [N]."""
        return self.tables["documents"]

    @property
    def queries(self) -> np.ndarray:
        """The n-grams of the distinct queries [Q, L, G]."""
        return self.tables["queries"][QUERY]

    def split(self, name: str) -> Columns:
        """Return the examples of "train", "validation" or "test": `query`, `document`, `user_id`, `now`."""
        assert name in SPLITS, name
        return self.tables[name]


def build_search_dataset(
    events: Path,
    output: Path,
    settings: TextSettings,
    split: SplitSettings,
    engine: EngineSettings = EngineSettings(),
) -> None:
    """Choose the searches that led to a watch, read their texts and the titles, write them to `output`.

    A video whose title is missing or has no words is no document; a search is no example when its video is
    no document or its query has no words. The manifest counts them.

    Args:
        events: folder that `ingestion.ingest` wrote.
        output: folder of the dataset; replaced as a whole.
        settings: which searches are examples and how texts are read.
        split: which days train, validate and test.
        engine: the memory and threads in which DuckDB reads the events.

    Raises:
        AbsentError: the log has no searches or no titles; or none of its searches led to a watch in the
            days to train, or to test.
        InputError: the events have too few days, or lack the column that `text.positive` needs.
    """
    with ExitStack() as stack:
        stack.enter_context(reading(events))
        _check(events, settings)
        windows = split_days(event_files.days(events), split)
        con = connect(engine.duckdb)
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the events in {events}"))
        stack.enter_context(writing(output))
        fresh = stack.enter_context(atomic_path(output))
        size = (settings.max_words, settings.max_ngrams)
        limits = window(event_files.days(events), split)
        documents, _ = _write_texts(con, _titles(con, events, limits[1]), fresh / "documents", TITLE, size)
        examples = _examples(con, events, settings, limits)
        asked = examples.select("query").distinct().order_by("query")
        size = (SEARCH_WORDS, SEARCH_NGRAMS)  # as much as serving reads of a search
        queries, query_rows = _write_texts(con, asked, fresh / "queries", QUERY, size)
        starts = [datetime.combine((windows[name] or windows["test"])[0], time(), UTC) for name in SPLITS[1:]]
        bounds = np.array([int(start.timestamp()) for start in starts])
        splits, left_out = _write_examples(con, examples, fresh, query_rows, bounds)
        if empty := [name for name in ("train", "test") if not splits[name]["rows"]]:
            raise AbsentError(
                f"The events in {events} have, in the days to {' and to '.join(empty)}, no search that led "
                "to a watch of a video with a title; ingest a longer log or leave text matching out."
            )
        for name, days in windows.items():
            splits[name] |= {"from": str(days[0]), "until": str(days[-1])} if days else {}
        manifest = {
            "documents": documents,
            "queries": queries,
            "left_out": left_out,
            "settings": settings.model_dump(include={"positive", "click_seconds", "max_words", "max_ngrams"}),
            "splits": splits,
        }
        write_json(fresh / "manifest.json", manifest)


def _check(events: Path, settings: TextSettings) -> None:
    absent = event_files.absent(events)
    lacking = {"searches": not event_files.has(events, SEARCHES), "titles": "videos.title" in absent}
    for what, is_lacking in lacking.items():
        if is_lacking:
            raise AbsentError(
                f"The events in {events} have no {what}; ingest a log with them or leave text matching out."
            )
    if settings.positive == "told" and "searches.clicked_video_id" in absent:
        raise InputError(
            f"The events in {events} have no searches.clicked_video_id; set text.positive to first_click."
        )


# -- Choosing examples ------------------------------------------------------------------------------------


def _examples(con: Engine, events: Path, settings: TextSettings, limits: Limits) -> ir.Table:
    """Return `user_id`, `query`, its row among the sorted queries, `video_id`, `timestamp` of the watch.

    Those of the window alone, which `limits` bound.
    """
    searches = event_files.searches(con, events)
    told = settings.positive != "first_click" and "clicked_video_id" in searches.columns
    if told:
        opened = searches.filter(searches.clicked_video_id.notnull())
        found = opened.select("user_id", "query", "timestamp", video_id="clicked_video_id")
    else:
        found = _first_clicks(searches, event_files.impressions(con, events), settings.click_seconds)
    return between(found, *limits).mutate(row=ibis.dense_rank().over(ibis.window(order_by="query")))


def _first_clicks(searches: ir.Table, impressions: ir.Table, click_seconds: int) -> ir.Table:
    """Give each click to its user's last search before it, and each search the first of its clicks."""
    asked = searches.select("user_id", "query", searched="timestamp")
    clicked = impressions.filter(impressions.clicked).select("user_id", "video_id", "timestamp")
    pairs = clicked.join(
        asked,
        [
            clicked.user_id == asked.user_id,
            asked.searched < clicked.timestamp,
            clicked.timestamp <= asked.searched + ibis.interval(seconds=click_seconds),
        ],
    ).select("user_id", "video_id", "timestamp", "query", "searched")
    click = ("user_id", "timestamp", "video_id")
    last = ibis.row_number().over(
        ibis.window(group_by=click, order_by=[pairs.searched.desc(), pairs.query.asc()])
    )
    own = pairs.mutate(place=last).filter(ibis._.place == 0).drop("place")
    first = ibis.row_number().over(
        ibis.window(group_by=("user_id", "searched", "query"), order_by=("timestamp", "video_id"))
    )
    return own.mutate(place=first).filter(ibis._.place == 0).drop("place", "searched")


def _titles(con: Engine, events: Path, end: datetime | None) -> ir.Table:
    videos = uploaded_before(event_files.videos(con, events), end)
    fields = {}
    if "channel_id" in videos.columns:
        fields["channel_id"] = videos.channel_id
    if "category" in videos.columns:
        fields["category"] = text_ids(videos.category)
    return videos.select("title", "video_id", **fields).order_by("video_id")


# -- Writing ----------------------------------------------------------------------------------------------


def _write_texts(
    con: Engine, rows: ir.Table, folder: Path, name: str, size: tuple[int, int]
) -> tuple[dict[str, Any], np.ndarray]:
    """Write the n-grams of the first column, called `name`, and the other columns, in the order of `rows`.

    Returns:
        What the manifest tells of them, and where each row was written, -1 for a text without words.
    """
    text, *others = rows.columns
    ngrams = np.empty((0, *size), np.int64)
    have_words = [np.empty(0, bool)]
    with ColumnWriter(folder, {name: ngrams} | {other: np.empty(0, np.int64) for other in others}) as writer:
        for batch in con.batches(rows, READ_ROWS):
            ids = _padded(batch[text].to_pylist(), size)
            there = ids[:, 0, 0] != PAD_ID
            writer.append({name: ids[there]} | {other: batch[other].to_numpy()[there] for other in others})
            have_words.append(there)
    written = np.concatenate(have_words)
    found = {"rows": writer.rows, "without_words": len(written) - writer.rows}
    return found | {"checksum": f"{writer.checksum:08x}"}, np.where(written, written.cumsum() - 1, -1)


def _padded(texts: list[str | None], size: tuple[int, int]) -> np.ndarray:
    """Return the n-gram ids [B, L, G] of texts, `size` being L and G."""
    ids = ngram_ids(texts, max_words=size[0], max_ngrams=size[1])
    short = [(0, most - there) for most, there in zip(size, ids.shape[1:], strict=True)]
    return np.pad(ids, [(0, 0), *short], constant_values=PAD_ID)


def _write_examples(
    con: Engine, examples: ir.Table, folder: Path, query_rows: np.ndarray, bounds: np.ndarray
) -> tuple[dict[str, Any], int]:
    """Write the splits, which `bounds`, in seconds, part.

    Returns:
        What the manifest tells of them, and how many searches were left out for want of words.
    """
    videos = read_columns(folder / "documents")["video_id"]
    names, left_out = ("query", "document", "user_id", "now"), 0
    with ExitStack() as stack:
        empty = {name: np.empty(0, np.int64) for name in names}
        writers = {name: stack.enter_context(ColumnWriter(folder / name, empty)) for name in SPLITS}
        in_order = examples.order_by("timestamp", "user_id", "query").drop("query")
        for batch in con.batches(in_order, READ_ROWS):
            now = batch["timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy() // 1_000_000
            found = {
                "query": query_rows[batch["row"].to_numpy()],
                "document": _positions(videos, batch["video_id"].to_numpy()),
                "user_id": batch["user_id"].to_numpy(),
                "now": now,
            }
            there = (found["query"] >= 0) & (found["document"] >= 0)
            left_out += int(np.sum(~there))
            split = np.searchsorted(bounds, now, side="right")
            for number, writer in enumerate(writers.values()):
                writer.append({name: values[there & (split == number)] for name, values in found.items()})
    return {
        name: {"rows": writer.rows, "checksum": f"{writer.checksum:08x}"} for name, writer in writers.items()
    }, left_out


def _positions(sorted_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each of `wanted` [B] stands in `sorted_ids` [N], -1 where it does not."""
    place = np.searchsorted(sorted_ids, wanted)
    there = np.append(sorted_ids, PAD_ID)[place] == wanted
    found: np.ndarray = np.where(there, place, -1)
    return found
