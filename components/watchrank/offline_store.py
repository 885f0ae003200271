"""Feast's DuckDB offline store, with a point-in-time join that does not grow with the square of a history.

Feast pairs every row with *all* earlier feature rows of its entity, lists included, and then keeps the
newest: 50 thousand requests took 105 s and 10 GB. Here an ASOF join finds the newest row's time first, and
only then its values are fetched: 0.5 s and 0.4 GB for the same answer (a test compares the two).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.repo_config import RepoConfig

UTC_MICROSECONDS = "timestamp('UTC', 6)"


class AsOfOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """The settings of `AsOfOfflineStore`: those of Feast's own."""

    type: str = "watchrank.offline_store.AsOfOfflineStore"


class AsOfOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Reads feature rows that are unique by (entity, event timestamp) and never expire."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Join each row of `entity_df` (keys and `event_timestamp`) with the features known at its time."""
        if full_feature_names or filter_by_created_timestamp or any(view.ttl for view in feature_views):
            raise NotImplementedError("No full feature names, created timestamps or time to live here.")
        rows = ibis.memtable(entity_df)
        rows = rows.mutate(event_timestamp=rows.event_timestamp.cast(UTC_MICROSECONDS))
        for view in feature_views:
            rows = _stamped(rows, view)
        for view in feature_views:
            names = [ref.partition(":")[2] for ref in feature_refs if ref.partition(":")[0] == view.name]
            rows = _fetched(rows, view, names)
        metadata = RetrievalMetadata(features=feature_refs, keys=list(entity_df.columns))
        return _job(rows, config, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return each entity's newest row between the two times, both included."""
        table = ibis.read_parquet(data_source.path)
        time = table[timestamp_field]
        within = table.filter(time.between(ibis.literal(start_date), ibis.literal(end_date)))
        newest = within.group_by(join_key_columns).agg(within[timestamp_field].max().name(timestamp_field))
        rows = newest.inner_join(table, [*join_key_columns, timestamp_field])
        return _job(rows.select(*join_key_columns, *feature_name_columns, timestamp_field), config, None)


def _stamped(rows: ir.Table, view: FeatureView) -> ir.Table:
    """Add the time of the view's newest row that each row may know; missing where there is none."""
    stamp = _stamp_name(view)
    times = _source(view).select(*view.join_keys, **{stamp: view.batch_source.timestamp_field})
    joined = rows.asof_join(
        times, on=rows.event_timestamp >= times[stamp], predicates=view.join_keys, rname="{name}_of_view"
    )
    return joined.select(*rows.columns, stamp)


def _fetched(rows: ir.Table, view: FeatureView, names: Sequence[str]) -> ir.Table:
    """Replace the time of the view's row by its values."""
    stamp = _stamp_name(view)
    values = _source(view).select(*view.join_keys, *names, **{stamp: view.batch_source.timestamp_field})
    joined = rows.left_join(values, [*view.join_keys, stamp], rname="{name}_of_view")
    return joined.select(*(name for name in rows.columns if name != stamp), *names)


def _stamp_name(view: FeatureView) -> str:
    return f"{view.name}_timestamp"


def _source(view: FeatureView) -> ir.Table:
    return ibis.read_parquet(view.batch_source.path)


def _job(table: ir.Table, config: RepoConfig, metadata: RetrievalMetadata | None) -> RetrievalJob:
    return IbisRetrievalJob(
        table=table,
        on_demand_feature_views=[],
        full_feature_names=False,
        metadata=metadata,
        data_source_writer=None,
        staging_location=None,
        staging_location_endpoint_override=None,
        repo_path=str(config.repo_path),
    )
