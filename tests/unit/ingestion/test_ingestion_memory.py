"""A log larger than the engine's memory."""

import numpy as np
import pyarrow as pa
import pyarrow.csv

from watchrank.config import EngineSettings, IngestionSettings
from watchrank.ingestion import ingest

ROWS = 300_000
DAY = 86_400


def test_csv_larger_than_memory_is_ingested(tmp_path):
    """30 MB of text become some 100 MB in the engine; a tenth of the rows are there twice."""
    data = tmp_path / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    start = np.datetime64("2026-01-01T00:00:00")
    watched = draw.uniform(0, 60, ROWS).round(2) * (draw.random(ROWS) < 0.3)
    columns = {
        "user_id": draw.integers(0, 1_000, ROWS),
        "video_id": draw.integers(0, 1_000, ROWS),
        "timestamp": start + np.arange(ROWS) * 14 * DAY // ROWS,
        "clicked": watched > 0,
        "watch_seconds": watched,
        "surface": np.array(["home", "feed"])[np.arange(ROWS) % 2],
        "candidate_source": np.full(ROWS, "a source with quite a long name"),
    }
    impressions = pa.table(columns)
    pa.csv.write_csv(
        pa.concat_tables([impressions, impressions.slice(0, ROWS // 10)]), data / "impressions.csv"
    )
    ids = pa.array(range(1_000))
    pa.csv.write_csv(pa.table({"user_id": ids}), data / "users.csv")
    videos = {
        "video_id": ids,
        "channel_id": ids,
        "upload_time": [""] * 1_000,
        "duration_seconds": [60] * 1_000,
    }
    pa.csv.write_csv(pa.table(videos), data / "videos.csv")
    settings = IngestionSettings(max_quarantine_share=0.1)
    small = EngineSettings(memory_limit="120MB", threads=2)
    impressions = ingest(data, "own", tmp_path / "events", settings, small).tables["impressions"]
    assert impressions.quarantined == {"duplicate": ROWS // 10}
    assert (impressions.rows, len(impressions.days)) == (ROWS, 14)
