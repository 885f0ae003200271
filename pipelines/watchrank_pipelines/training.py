"""The training pipeline: raw logs to a release that Triton serves."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Markdown

from watchrank.config import Config
from watchrank_components import candidates as candidate_components
from watchrank_components import data as data_components
from watchrank_components import monitoring as monitoring_components
from watchrank_components import ranking as ranking_components
from watchrank_components import serving as serving_components
from watchrank_components import text as text_components
from watchrank_pipelines.parameters import sections

_DEFAULTS = sections(Config())


class Reports(NamedTuple):
    """What a run leaves to look at."""

    report: HTML
    gate: Markdown
    validation_report: HTML
    results: Dataset
    candidate_results: Dataset
    text_results: Dataset
    recommendations: Markdown


@dsl.pipeline(name="watchrank-training", display_name="watchrank: training")
def training_pipeline(
    workspace: str,
    data: str = "",
    source: str = "own",
    feature_repo: str = "feature_repo",
    model_repository: str = "model_repository",
    model: str = _DEFAULTS["model"],
    engine: dict = _DEFAULTS["engine"],
    simulation: dict = _DEFAULTS["simulation"],
    ingestion: dict = _DEFAULTS["ingestion"],
    validation: dict = _DEFAULTS["validation"],
    features: dict = _DEFAULTS["features"],
    split: dict = _DEFAULTS["split"],
    ranking: dict = _DEFAULTS["ranking"],
    training: dict = _DEFAULTS["training"],
    examples: dict = _DEFAULTS["examples"],
    candidates: dict = _DEFAULTS["candidates"],
    candidate_training: dict = _DEFAULTS["candidate_training"],
    text: dict = _DEFAULTS["text"],
    text_training: dict = _DEFAULTS["text_training"],
    index: dict = _DEFAULTS["index"],
    gates: dict = _DEFAULTS["gates"],
    export: dict = _DEFAULTS["export"],
    deployment: dict = _DEFAULTS["deployment"],
    drift: dict = _DEFAULTS["drift"],
) -> Reports:
    """Raw logs to a release that Triton serves.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log. Empty: simulate one.
        source: Format of the log: own or kuairand.
        feature_repo: Folder of the Feast definitions.
        model_repository: Folder that Triton serves from.
        model: The ranker: ranking (watch time alone), share_bottom, omoe or mmoe (several tasks).
        engine: Engine of ingestion and features.
        simulation: Size and seed of the simulated log.
        ingestion: What counts as a good row.
        validation: Bounds of the suites beyond the schema.
        features: How often features are renewed.
        split: Which days train, validate and test.
        ranking: Architecture of the ranker, with its tasks.
        training: The run of training the ranker.
        examples: Which watches are examples of candidate generation.
        candidates: Architecture of candidate generation.
        candidate_training: The run of training candidate generation.
        text: Text matching: which searches are examples, the towers, their loss.
        text_training: The run of training text matching.
        index: Search for candidates: how many, exact or by an inverted file.
        gates: What candidate generation and the ranker must beat to be released.
        export: ONNX opset, IR version and parity tolerance.
        deployment: Where Triton listens.
        drift: The report on features that shift.
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
    monitoring_components.report_skew(
        store=built.outputs["store"], workspace=workspace, feature_repo=feature_repo, sample=500
    ).set_display_name("Skew report")
    monitoring_components.report_drift(
        dataset=dataset, request_log="", events="", drift=drift
    ).set_display_name("Drift report")
    trained = ranking_components.train_ranking(
        dataset=dataset, kind=model, ranking=ranking, training=training
    ).set_display_name("Training")
    evaluated = ranking_components.evaluate_ranking(
        model=trained.outputs["model"],
        dataset=dataset,
        truth=log.outputs["truth"],
        workspace=workspace,
        model_repository=model_repository,
        gates=gates,
    ).set_display_name("Evaluation")
    evaluated.set_caching_options(False)  # what serves may be another release
    chosen = candidate_components.build_candidate_dataset(
        events=events,
        store=built.outputs["store"],
        workspace=workspace,
        feature_repo=feature_repo,
        examples=examples,
    ).set_display_name("Candidate dataset")
    tower = candidate_components.train_candidates(
        dataset=chosen.outputs["dataset"], candidates=candidates, candidate_training=candidate_training
    ).set_display_name("Candidate training")
    measured = candidate_components.evaluate_candidates(
        model=tower.outputs["model"], dataset=chosen.outputs["dataset"], gates=gates
    ).set_display_name("Candidate evaluation")
    searched = text_components.build_search_dataset(events=events, text=text, split=split)
    searched.set_display_name("Search dataset").after(validated)
    matched = text_components.train_text(
        dataset=searched.outputs["dataset"], text=text, text_training=text_training
    ).set_display_name("Text training")
    found = text_components.evaluate_text(
        model=matched.outputs["model"], dataset=searched.outputs["dataset"]
    ).set_display_name("Text evaluation")
    exported = serving_components.export_release(
        ranking_model=trained.outputs["model"],
        dataset=dataset,
        ranking_results=evaluated.outputs["results"],
        candidate_model=tower.outputs["model"],
        candidate_dataset=chosen.outputs["dataset"],
        candidate_results=measured.outputs["results"],
        text_model=matched.outputs["model"],
        search_dataset=searched.outputs["dataset"],
        text_results=found.outputs["results"],
        store=built.outputs["store"],
        workspace=workspace,
        feature_repo=feature_repo,
        index=index,
        export=export,
    ).set_display_name("Export and release")
    deployed = serving_components.deploy_release(
        release=exported.outputs["release"], model_repository=model_repository, deployment=deployment
    ).set_display_name("Deployment")
    recommended = serving_components.recommend(
        release=exported.outputs["release"],
        store=built.outputs["store"],
        deployed=deployed.output,
        workspace=workspace,
        feature_repo=feature_repo,
        deployment=deployment,
    ).set_display_name("Recommendations")
    return Reports(
        evaluated.outputs["report"],
        evaluated.outputs["gate"],
        validated.outputs["report"],
        evaluated.outputs["results"],
        measured.outputs["results"],
        found.outputs["results"],
        recommended.outputs["recommendations"],
    )
