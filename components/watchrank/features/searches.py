"""A user's last search, as the n-grams by which text matching reads it."""

from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from watchrank.engine import Engine
from watchrank.features.times import epoch_seconds, stamp
from watchrank.models.text.tokens import query_ids

QUERY_BATCH = 50_000
"""Distinct queries that are read at once."""


def last_searches(searches: ir.Table, cadence: int) -> ir.Table:
    """Return a row for each stamp after a search of a user: of the searches before it, the last.

    Args:
        searches: `user_id`, `time` and `query`.
        cadence: seconds between two stamps, 0 for one after each search.

    Returns:
        `user_id`, the stamp as `time`, `query` and `last_search_time`.
    """
    at = searches.time
    stamped = searches.select("user_id", "query", at=at, time=stamp(at, cadence))
    newest_first = ibis.window(group_by=["user_id", "time"], order_by=[ibis.desc("at"), ibis.desc("query")])
    last = stamped.mutate(place=ibis.row_number().over(newest_first)).filter(lambda rows: rows.place == 0)
    return last.select("user_id", "time", "query", last_search_time=epoch_seconds(last["at"]))


def query_ngrams(con: Engine, searches: ir.Table, target: Path) -> ir.Table:
    """Write each `query` with its `search_ngram_ids` to a file; Python reads texts here as everywhere."""
    schema = pa.schema([("query", pa.string()), ("search_ngram_ids", pa.list_(pa.int64()))])
    queries = searches.select("query").distinct()
    with pq.ParquetWriter(target, schema) as writer:
        for batch in con.batches(queries, QUERY_BATCH):
            texts = batch["query"].to_pylist()
            ids = pa.FixedSizeListArray.from_arrays(query_ids(texts).ravel(), query_ids([""]).shape[1])
            columns = [pa.array(texts, pa.string()), ids.cast(pa.list_(pa.int64()))]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return con.read_parquet([target])
