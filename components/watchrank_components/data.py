"""Components from raw logs to a training set."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from watchrank_components.image import component


@component
def prepare_log(data: str, source: str, workspace: str, simulation: dict) -> NamedTuple(
    "Log", [("folder", str), ("source", str), ("truth", str)]
):
    """Take the given log, or simulate one into the workspace when none is given.

    Args:
        data: folder of the log; empty to simulate one.
        source: format of the log.
        workspace: folder that keeps what outlives a run.
        simulation: settings of the simulator.

    Returns:
        The log's folder and format, and the folder of the true expected watch times if it is simulated.
    """
    from pathlib import Path

    from watchrank.config import SimulationSettings, parse
    from watchrank.simulation import simulate_into
    from watchrank.workspace import Workspace

    place = Workspace(Path(workspace))
    if data:
        return (data, source, "")
    simulate_into(place, parse(SimulationSettings, simulation, "simulation"))
    return (str(place.log), "own", str(place.truth))


@component
def ingest(
    log: str,
    source: str,
    workspace: str,
    ingestion: dict,
    engine: dict,
    spark: dict,
    run: str,
    events: Output[Dataset],
):
    """Type, deduplicate and partition a log by day; bad rows go to quarantine with their reason.

    Args:
        log: folder of the log, or s3://.
        source: its format: own, kuairand or movielens.
        workspace: the events are kept in it, by day.
        ingestion: settings: what counts as a good row.
        engine: settings of the engine.
        spark: settings of a cluster to run on; here when it has no image.
        run: id of the run; tried again, it takes up its job on Spark.
        events: the manifest of the events: rows, quarantine counts, checksum of each day.
    """
    import shutil
    from pathlib import Path

    from watchrank.config import EngineSettings, IngestionSettings, SparkSettings, parse
    from watchrank.ingestion import ingest
    from watchrank.ingestion.location import local_log
    from watchrank.spark_application import run_on_spark
    from watchrank.workspace import Workspace

    folder, cluster = Workspace(Path(workspace)).events, parse(SparkSettings, spark, "spark")
    if cluster.image:
        options = {"data": log, "source": source, "workspace": workspace}
        run_on_spark("ingest", options, {"ingestion": ingestion, "engine": engine}, cluster, run)
    else:
        rules, here = (
            parse(IngestionSettings, ingestion, "ingestion"),
            parse(EngineSettings, engine, "engine"),
        )
        with local_log(log, source) as files:
            ingest(files, source, folder, rules, here)
    shutil.copy(folder / "manifest.json", events.path)
    events.metadata["folder"] = str(folder)


@component
def validate(events: Input[Dataset], validation: dict, report: Output[HTML], data_docs: Output[Artifact]):
    """Hold the events against the Great Expectations suites; fail with the reason when one fails.

    Args:
        events: of `ingest`.
        validation: settings: the bounds beyond the schema.
        report: one page.
        data_docs: Great Expectations' own site, as a folder.
    """
    import shutil
    from pathlib import Path

    from watchrank.config import ValidationSettings, parse
    from watchrank.validation import validate

    folder = Path(data_docs.path).parent / "validation"
    try:
        validate(Path(events.metadata["folder"]), folder, parse(ValidationSettings, validation, "validation"))
    finally:
        if folder.exists():
            shutil.copy(folder / "report.html", report.path)
            shutil.copytree(folder / "data_docs", data_docs.path)


@component
def build_features(
    events: Input[Dataset],
    workspace: str,
    feature_repo: str,
    features: dict,
    engine: dict,
    spark: dict,
    run: str,
    store: Output[Dataset],
):
    """Build the feature tables, apply the Feast definitions and materialise the online store.

    Args:
        events: of `ingest`.
        workspace: the tables, the registry and the local online store are kept in it.
        feature_repo: folder of the Feast definitions.
        features: settings: how often features are renewed.
        engine: settings of the engine.
        spark: settings of a cluster to run on; here when it has no image.
        run: id of the run; tried again, it takes up its job on Spark.
        store: where the tables lie.
    """
    from datetime import UTC, datetime
    from pathlib import Path

    from watchrank.config import EngineSettings, FeatureSettings, SparkSettings, parse
    from watchrank.feature_store import materialise, open_store
    from watchrank.features import build_features
    from watchrank.spark_application import run_on_spark
    from watchrank.storage import write_json
    from watchrank.workspace import Workspace

    place, cluster = Workspace(Path(workspace)), parse(SparkSettings, spark, "spark")
    if cluster.image:
        options = {"workspace": workspace, "feature_repo": feature_repo}
        run_on_spark("features", options, {"features": features, "engine": engine}, cluster, run)
    else:
        cadence, here = parse(FeatureSettings, features, "features"), parse(EngineSettings, engine, "engine")
        build_features(Path(events.metadata["folder"]), place.features, cadence, here)
        opened = open_store(Path(feature_repo), place.features, place.feature_store, here)
        materialise(opened, datetime.now(UTC))
    write_json(Path(store.path), {"features": str(place.features), "state": str(place.feature_store)})
    store.metadata["folder"] = str(place.features)


@component
def build_dataset(
    events: Input[Dataset],
    store: Input[Dataset],
    workspace: str,
    feature_repo: str,
    split: dict,
    engine: dict,
    dataset: Output[Dataset],
):
    """Join every impression with Feast's features as of its time; split by day.

    Args:
        events: of `ingest`.
        store: of `build_features`.
        workspace: holds Feast's registry.
        feature_repo: folder of the Feast definitions.
        split: settings: which days train, validate and test.
        engine: settings of the engine: memory and threads.
        dataset: memory-mappable columns by split.
    """
    from pathlib import Path

    from watchrank.config import EngineSettings, SplitSettings, parse
    from watchrank.datasets.ranking import build_ranking_dataset
    from watchrank.feature_store import open_store
    from watchrank.workspace import Workspace

    state = Workspace(Path(workspace)).feature_store
    limits = parse(EngineSettings, engine, "engine")
    feast = open_store(Path(feature_repo), Path(store.metadata["folder"]), state, limits)
    settings = parse(SplitSettings, split, "split")
    build_ranking_dataset(Path(events.metadata["folder"]), feast, Path(dataset.path), settings)


@component
def open_workspace(workspace: str, events: Output[Dataset], store: Output[Dataset]) -> str:
    """Take up events and feature tables as an earlier run left them.

    Args:
        workspace: folder that keeps what outlives a run.
        events: as of `ingest`.
        store: as of `build_features`.

    Returns:
        The folder of the events.
    """
    import shutil
    from pathlib import Path

    from watchrank.errors import InputError
    from watchrank.storage import write_json
    from watchrank.workspace import Workspace

    place = Workspace(Path(workspace))
    if not (place.events / "manifest.json").exists():
        raise InputError(f"{place.events} has no events yet; run the feature pipeline on this workspace.")
    shutil.copy(place.events / "manifest.json", events.path)
    write_json(Path(store.path), {"features": str(place.features), "state": str(place.feature_store)})
    events.metadata["folder"], store.metadata["folder"] = str(place.events), str(place.features)
    return str(place.events)
