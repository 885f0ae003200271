"""Components that run on Spark: submitted through the Spark Operator, and watched."""

from kfp.dsl import Dataset, Input, Output

from watchrank_components.image import component


@component
def ingest_on_spark(
    log: str,
    source: str,
    workspace: str,
    ingestion: dict,
    engine: dict,
    spark: dict,
    run: str,
    events: Output[Dataset],
):
    """Ingest a log on Spark: typed, deduplicated, by day; bad rows go to quarantine with their reason.

    Args:
        log: folder of the log, on the workspace's volume, or its address.
        source: its format: own, kuairand or movielens.
        workspace: the events are kept in it, by day; on its volume.
        ingestion: settings: what counts as a good row.
        engine: settings of the engine.
        spark: settings: image, driver, executors.
        run: name of the pipeline's run: trying again takes up its job.
        events: the manifest of the events: rows, quarantine counts, checksum of each day.
    """
    import shutil
    from pathlib import Path

    from watchrank.config import SparkSettings, parse
    from watchrank.spark_application import run_on_spark
    from watchrank.workspace import Workspace

    folder = Workspace(Path(workspace)).events
    options = {"data": log, "source": source, "workspace": workspace}
    sections = {"ingestion": ingestion, "engine": engine}
    run_on_spark("ingest", options, sections, parse(SparkSettings, spark, "spark"), run)
    shutil.copy(folder / "manifest.json", events.path)
    events.metadata["folder"] = str(folder)


@component
def build_features_on_spark(
    events: Input[Dataset],
    workspace: str,
    feature_repo: str,
    features: dict,
    engine: dict,
    spark: dict,
    run: str,
    store: Output[Dataset],
):
    """Build the feature tables on Spark, apply the Feast definitions and materialise the online store.

    Args:
        events: of `ingest_on_spark`; they are read from the workspace.
        workspace: the tables, the registry and the local online store are kept in it; on its volume.
        feature_repo: folder of the Feast definitions, in Spark's image.
        features: settings: how often features are renewed.
        engine: settings of the engine.
        spark: settings: image, driver, executors.
        run: name of the pipeline's run: trying again takes up its job.
        store: where the tables lie.
    """
    from pathlib import Path

    from watchrank.config import SparkSettings, parse
    from watchrank.spark_application import run_on_spark
    from watchrank.storage import write_json
    from watchrank.workspace import Workspace

    place = Workspace(Path(workspace))
    options = {"workspace": workspace, "feature_repo": feature_repo}
    sections = {"features": features, "engine": engine}
    run_on_spark("features", options, sections, parse(SparkSettings, spark, "spark"), run)
    write_json(Path(store.path), {"features": str(place.features), "state": str(place.feature_store)})
    store.metadata["folder"] = str(place.features)
