"""The groups of steps that the pipelines are made of; the UI shows each as one box that opens.

```
data ──> ranker ──────────────┐
  ├────> candidate generation ┼──> release
  └────> text matching ───────┘
```
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Markdown, Model

from watchrank_components import candidates as candidate_components
from watchrank_components import data as data_components
from watchrank_components import monitoring as monitoring_components
from watchrank_components import ranking as ranking_components
from watchrank_components import serving as serving_components
from watchrank_components import text as text_components
from watchrank_pipelines.definition import Settings, effect, online, pipeline

SKEW_SAMPLE = 500


class Data(NamedTuple):
    """Events, and the feature store that was built of them."""

    events: Dataset
    store: Dataset
    truth: str
    validation_report: HTML


class Ranker(NamedTuple):
    """A ranker that passed its gate."""

    model: Model
    dataset: Dataset
    results: Dataset
    report: HTML
    gate: Markdown


class Matcher(NamedTuple):
    """Candidate generation, or text matching."""

    model: Model
    dataset: Dataset
    results: Dataset


class Served(NamedTuple):
    """What a release answers."""

    recommendations: Markdown


@pipeline("data", "Data and features", "simulation", "ingestion", "validation", "features", "engine", "spark")
def data_group(workspace: str, data: str, source: str, feature_repo: str, *, settings: Settings) -> Data:
    """Bring a log in, validate it, build the feature tables and the online store.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log, or s3://. Empty: simulate one.
        source: Format of the log.
        feature_repo: Folder of the Feast definitions.
        settings: Its sections of the configuration.
    """
    log = online(
        data_components.prepare_log(
            data=data, source=source, workspace=workspace, simulation=settings["simulation"]
        ),
        "Log",
    )
    ingested = online(
        data_components.ingest(
            log=log.outputs["folder"],
            source=log.outputs["source"],
            workspace=workspace,
            ingestion=settings["ingestion"],
            engine=settings["engine"],
            spark=settings["spark"],
            run=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        ),
        "Ingestion",
    )
    events = ingested.outputs["events"]
    validated = data_components.validate(events=events, validation=settings["validation"])
    validated.set_display_name("Validation")
    built = online(
        data_components.build_features(
            events=events,
            workspace=workspace,
            feature_repo=feature_repo,
            features=settings["features"],
            engine=settings["engine"],
            spark=settings["spark"],
            run=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        ),
        "Features",
    ).after(validated)
    store = built.outputs["store"]
    online(
        monitoring_components.report_skew(
            store=store, workspace=workspace, feature_repo=feature_repo, sample=SKEW_SAMPLE
        ),
        "Skew report",
    )
    return Data(events, store, log.outputs["truth"], validated.outputs["report"])


@pipeline("ranker", "Ranker", "model", "engine", "split", "ranking", "training", "launch", "gates", "drift")
def ranker_group(
    events: Dataset,
    store: Dataset,
    truth: str,
    workspace: str,
    feature_repo: str,
    model_repository: str,
    release_store: str,
    start: str,
    *,
    settings: Settings,
) -> Ranker:
    """Join the training set, train the ranker and hold it against what serves.

    Args:
        events: The events.
        store: The feature store.
        truth: Folder of the true expected watch times of a simulated log, or empty.
        workspace: Keeps the releases.
        feature_repo: Folder of the Feast definitions.
        model_repository: What Triton serves from: the champion.
        release_store: Where Tritons follow releases, or empty.
        start: Folder of the release whose weights it starts from, or empty.
        settings: Its sections of the configuration.
    """
    dataset = (
        data_components.build_dataset(
            events=events,
            store=store,
            workspace=workspace,
            feature_repo=feature_repo,
            split=settings["split"],
            engine=settings["engine"],
        )
        .set_display_name("Dataset")
        .outputs["dataset"]
    )
    effect(
        monitoring_components.report_drift(
            dataset=dataset, request_log="", events="", drift=settings["drift"]
        ),
        "Drift report",
    )
    trained = ranking_components.train_ranking(
        dataset=dataset,
        kind=settings["model"],
        ranking=settings["ranking"],
        training=settings["training"],
        launch=settings["launch"],
        start=start,
    ).set_display_name("Training")
    evaluated = effect(  # what serves may be another release
        ranking_components.evaluate_ranking(
            model=trained.outputs["model"],
            dataset=dataset,
            truth=truth,
            workspace=workspace,
            model_repository=model_repository,
            release_store=release_store,
            gates=settings["gates"],
        ),
        "Evaluation and gate",
    )
    return Ranker(
        trained.outputs["model"],
        dataset,
        evaluated.outputs["results"],
        evaluated.outputs["report"],
        evaluated.outputs["gate"],
    )


@pipeline(
    "candidates",
    "Candidate generation",
    "engine",
    "split",
    "examples",
    "candidates",
    "candidate_training",
    "launch",
    "gates",
)
def candidate_group(
    events: Dataset,
    store: Dataset,
    workspace: str,
    feature_repo: str,
    start: str,
    *,
    settings: Settings,
) -> Matcher:
    """Choose the examples, train candidate generation and hold it against its baselines.

    Args:
        events: The events.
        store: The feature store.
        workspace: Holds Feast's registry.
        feature_repo: Folder of the Feast definitions.
        start: Folder of the release whose weights it starts from, or empty.
        settings: Its sections of the configuration.
    """
    dataset = (
        candidate_components.build_candidate_dataset(
            events=events,
            store=store,
            workspace=workspace,
            feature_repo=feature_repo,
            examples=settings["examples"],
            split=settings["split"],
            engine=settings["engine"],
        )
        .set_display_name("Dataset")
        .outputs["dataset"]
    )
    trained = candidate_components.train_candidates(
        dataset=dataset,
        candidates=settings["candidates"],
        candidate_training=settings["candidate_training"],
        launch=settings["launch"],
        start=start,
    ).set_display_name("Training")
    evaluated = candidate_components.evaluate_candidates(
        model=trained.outputs["model"], dataset=dataset, gates=settings["gates"]
    ).set_display_name("Evaluation and gate")
    return Matcher(trained.outputs["model"], dataset, evaluated.outputs["results"])


@pipeline("text", "Text matching", "engine", "split", "text", "text_training", "launch")
def text_group(events: Dataset, start: str, *, settings: Settings) -> Matcher:
    """Match searches with titles; passed by where the log has no searches.

    Args:
        events: The events.
        start: Folder of the release whose weights it starts from, or empty.
        settings: Its sections of the configuration.
    """
    dataset = (
        text_components.build_search_dataset(
            events=events, text=settings["text"], split=settings["split"], engine=settings["engine"]
        )
        .set_display_name("Dataset")
        .outputs["dataset"]
    )
    trained = text_components.train_text(
        dataset=dataset,
        text=settings["text"],
        text_training=settings["text_training"],
        launch=settings["launch"],
        start=start,
    ).set_display_name("Training")
    evaluated = text_components.evaluate_text(
        model=trained.outputs["model"], dataset=dataset
    ).set_display_name("Evaluation")
    return Matcher(trained.outputs["model"], dataset, evaluated.outputs["results"])


@pipeline("release", "Release", "index", "export", "deployment")
def release_group(
    ranking_model: Model,
    dataset: Dataset,
    ranking_results: Dataset,
    candidate_model: Model,
    candidate_dataset: Dataset,
    candidate_results: Dataset,
    text_model: Model,
    search_dataset: Dataset,
    text_results: Dataset,
    store: Dataset,
    workspace: str,
    feature_repo: str,
    model_repository: str,
    release_store: str,
    *,
    settings: Settings,
) -> Served:
    """Export the models, make them one release, and let Triton serve it.

    Args:
        ranking_model: The ranker.
        dataset: Its dataset.
        ranking_results: Its metrics.
        candidate_model: Candidate generation.
        candidate_dataset: Its dataset.
        candidate_results: Its metrics.
        text_model: Text matching.
        search_dataset: Its dataset.
        text_results: Its metrics.
        store: The feature store.
        workspace: Keeps the releases.
        feature_repo: Folder of the Feast definitions.
        model_repository: What Triton serves from.
        release_store: Where Tritons follow releases, or empty.
        settings: Its sections of the configuration.
    """
    exported = online(
        serving_components.export_release(
            ranking_model=ranking_model,
            dataset=dataset,
            ranking_results=ranking_results,
            candidate_model=candidate_model,
            candidate_dataset=candidate_dataset,
            candidate_results=candidate_results,
            text_model=text_model,
            search_dataset=search_dataset,
            text_results=text_results,
            store=store,
            workspace=workspace,
            release_store=release_store,
            feature_repo=feature_repo,
            index=settings["index"],
            export=settings["export"],
        ),
        "Export",
    )
    deployed = online(
        serving_components.deploy_release(
            release=exported.outputs["release"],
            model_repository=model_repository,
            release_store=release_store,
            deployment=settings["deployment"],
        ),
        "Deployment",
    )
    recommended = online(
        serving_components.recommend(
            release=exported.outputs["release"],
            store=store,
            deployed=deployed.output,
            workspace=workspace,
            feature_repo=feature_repo,
            deployment=settings["deployment"],
        ),
        "Recommendations",
    )
    return Served(recommended.outputs["recommendations"])
