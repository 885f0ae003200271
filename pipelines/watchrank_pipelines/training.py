"""The training pipeline: raw logs to a release that Triton serves."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Markdown

from watchrank.config import Config
from watchrank_components import data as data_components
from watchrank_components import ranking as ranking_components

_DEFAULTS = Config().model_dump(mode="json", exclude_none=True)


class Reports(NamedTuple):
    """What a run leaves to look at."""

    report: HTML
    validation_report: HTML
    results: Dataset
    recommendations: Markdown


@dsl.pipeline(name="watchrank-training", display_name="watchrank: training")
def training_pipeline(
    workspace: str,
    data: str = "",
    source: str = "own",
    feature_repo: str = "feature_repo",
    model_repository: str = "model_repository",
    engine: dict = _DEFAULTS["engine"],
    simulation: dict = _DEFAULTS["simulation"],
    ingestion: dict = _DEFAULTS["ingestion"],
    validation: dict = _DEFAULTS["validation"],
    features: dict = _DEFAULTS["features"],
    split: dict = _DEFAULTS["split"],
    ranking: dict = _DEFAULTS["ranking"],
    training: dict = _DEFAULTS["training"],
    export: dict = _DEFAULTS["export"],
    deployment: dict = _DEFAULTS["deployment"],
) -> Reports:
    """Raw logs to a release that Triton serves.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log. Empty: simulate one.
        source: Format of the log: own or kuairand.
        feature_repo: Folder of the Feast definitions.
        model_repository: Folder that Triton serves from.
        engine: Engine of ingestion and features.
        simulation: Size and seed of the simulated log.
        ingestion: What counts as a good row.
        validation: Bounds of the suites beyond the schema.
        features: How often features are renewed.
        split: Which days train, validate and test.
        ranking: Architecture of the ranker.
        training: The run of training.
        export: ONNX opset, IR version and parity tolerance.
        deployment: Where Triton listens.
    """
    log = data_components.prepare_log(data=data, source=source, workspace=workspace, simulation=simulation)
    log.set_display_name("Log")
    ingested = data_components.ingest(
        log=log.outputs["folder"],
        source=log.outputs["source"],
        workspace=workspace,
        ingestion=ingestion,
        engine=engine,
    ).set_display_name("Ingestion")
    events = ingested.outputs["events"]
    validated = data_components.validate(events=events, validation=validation).set_display_name("Validation")
    built = (
        data_components.build_features(
            events=events, workspace=workspace, feature_repo=feature_repo, features=features, engine=engine
        )
        .set_display_name("Features")
        .after(validated)
    )
    joined = data_components.build_dataset(
        events=events,
        store=built.outputs["store"],
        workspace=workspace,
        feature_repo=feature_repo,
        split=split,
    ).set_display_name("Dataset")
    dataset = joined.outputs["dataset"]
    trained = ranking_components.train_ranking(dataset=dataset, ranking=ranking, training=training)
    trained.set_display_name("Training")
    evaluated = ranking_components.evaluate_ranking(
        model=trained.outputs["model"], dataset=dataset, truth=log.outputs["truth"]
    ).set_display_name("Evaluation")
    exported = ranking_components.export_release(
        model=trained.outputs["model"],
        dataset=dataset,
        results=evaluated.outputs["results"],
        workspace=workspace,
        export=export,
    ).set_display_name("Export and release")
    deployed = ranking_components.deploy_release(
        release=exported.outputs["release"], model_repository=model_repository, deployment=deployment
    ).set_display_name("Deployment")
    recommended = ranking_components.recommend(
        release=exported.outputs["release"],
        store=built.outputs["store"],
        version=deployed.output,
        workspace=workspace,
        feature_repo=feature_repo,
        deployment=deployment,
    ).set_display_name("Recommendations")
    return Reports(
        evaluated.outputs["report"],
        validated.outputs["report"],
        evaluated.outputs["results"],
        recommended.outputs["recommendations"],
    )
