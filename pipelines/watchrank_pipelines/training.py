"""The training pipeline: raw logs to a release that Triton serves."""

from typing import NamedTuple

from kfp.dsl import HTML, Dataset, Markdown

from watchrank_pipelines.definition import Settings, part, pipeline
from watchrank_pipelines.groups import candidate_group, data_group, ranker_group, release_group, text_group

SECTIONS = (
    "model",
    "engine",
    "spark",
    "launch",
    "simulation",
    "ingestion",
    "validation",
    "features",
    "split",
    "ranking",
    "training",
    "examples",
    "candidates",
    "candidate_training",
    "text",
    "text_training",
    "index",
    "gates",
    "export",
    "deployment",
    "drift",
)


class Reports(NamedTuple):
    """What a run leaves to look at."""

    ranking: HTML
    gate: Markdown
    validation: HTML
    metrics: Dataset
    candidate_metrics: Dataset
    text_metrics: Dataset
    recommendations: Markdown


@pipeline("watchrank-training", "watchrank: training", *SECTIONS)
def training_pipeline(
    workspace: str,
    data: str = "",
    source: str = "own",
    feature_repo: str = "feature_repo",
    model_repository: str = "model_repository",
    *,
    settings: Settings,
) -> Reports:
    """Raw logs to a release that Triton serves.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log, or s3://. Empty: simulate one.
        source: Format of the log: own, kuairand or movielens.
        feature_repo: Folder of the Feast definitions.
        model_repository: Folder that Triton serves from.
        settings: Its sections of the configuration.
    """
    places = {"workspace": workspace, "feature_repo": feature_repo}
    found = data_group(data=data, source=source, **places, **part(settings, data_group)).set_display_name(
        "Data and features"
    )
    built = {name: found.outputs[name] for name in ("events", "store")}
    ranker = ranker_group(
        **built,
        truth=found.outputs["truth"],
        model_repository=model_repository,
        **places,
        **part(settings, ranker_group),
    ).set_display_name("Ranker")
    candidates = candidate_group(**built, **places, **part(settings, candidate_group)).set_display_name(
        "Candidate generation"
    )
    text = text_group(events=built["events"], **part(settings, text_group)).set_display_name("Text matching")
    served = release_group(
        ranking_model=ranker.outputs["model"],
        dataset=ranker.outputs["dataset"],
        ranking_results=ranker.outputs["results"],
        candidate_model=candidates.outputs["model"],
        candidate_dataset=candidates.outputs["dataset"],
        candidate_results=candidates.outputs["results"],
        text_model=text.outputs["model"],
        search_dataset=text.outputs["dataset"],
        text_results=text.outputs["results"],
        store=built["store"],
        model_repository=model_repository,
        **places,
        **part(settings, release_group),
    ).set_display_name("Release")
    return Reports(
        ranker.outputs["report"],
        ranker.outputs["gate"],
        found.outputs["validation_report"],
        ranker.outputs["results"],
        candidates.outputs["results"],
        text.outputs["results"],
        served.outputs["recommendations"],
    )
