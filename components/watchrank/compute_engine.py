"""Feast's local compute engine, which materialises a block of rows after the other.

Feast's own holds the newest rows of all entities, and once more as a data frame: 7.4 GB for a million users.
Here the query's answer is read as a stream, and Feast writes each block of it.
"""

from typing import Any

import pyarrow as pa
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.local.arrow_table_value import ArrowTableValue
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.compute_engines.local.nodes import LocalOutputNode, LocalSourceReadNode
from feast.infra.compute_engines.utils import create_offline_store_retrieval_job
from feast.infra.registry.base_registry import BaseRegistry

from watchrank.engine import DuckDB

BLOCK_ROWS = 5_000
"""Rows that are read and written at once where Feast's setting says nothing."""


class BlockComputeEngineConfig(LocalComputeEngineConfig):  # type: ignore[misc]
    """The settings of `BlockComputeEngine`: none."""

    type: str = "watchrank.compute_engine.BlockComputeEngine"


class BlockComputeEngine(LocalComputeEngine):  # type: ignore[misc]
    """Materialises views without transformations from `offline_store.AsOfOfflineStore`.

    A block is `materialization.online_write_batch_size` rows of `feature_store.yaml`, or `BLOCK_ROWS`.
    """

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **_: Any
    ) -> MaterializationJob:
        """Write the newest row of each entity, which the offline store finds, to the online store."""
        view, context = task.feature_view, self.get_execution_context(registry, task)
        columns = LocalFeatureBuilder(registry, task, backend=None).get_column_info(view)
        newest = create_offline_store_retrieval_job(
            view.batch_source, columns, context, task.start_time, task.end_time
        )
        rows = LocalSourceReadNode("rows", view.batch_source, columns)
        output = LocalOutputNode("output", view, inputs=[rows])
        block = self.repo_config.materialization_config.online_write_batch_size or BLOCK_ROWS
        for batch in DuckDB(newest.table.get_backend()).batches(newest.table, block):
            context.node_outputs[rows.name] = ArrowTableValue(pa.Table.from_batches([batch]))
            output.execute(context)
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job_id=job, status=MaterializationJobStatus.SUCCEEDED)
