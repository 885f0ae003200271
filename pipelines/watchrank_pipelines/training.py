"""The training pipeline: raw logs to a release that Triton serves."""

from collections.abc import Mapping
from typing import NamedTuple

from kfp.dsl import HTML, Dataset, Markdown

from watchrank_components import run as run_components
from watchrank_pipelines.definition import Settings, effect, part, pipeline
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


def train_and_release(
    data: str,
    source: str,
    places: Mapping[str, str],
    served_from: Mapping[str, str],
    settings: Settings,
    *,
    until: str,
    warm_start: bool,
    step_back: bool,
) -> Reports:
    """Put the steps together: a log in, a release out.

    Args:
        data: folder of the log.
        source: its format.
        places: workspace and feature_repo.
        served_from: model_repository and release_store.
        settings: the sections of `SECTIONS`.
        until: last day of the window, or empty.
        warm_start: whether to start from what serves.
        step_back: whether the window may end before that of what serves.
    """
    found = data_group(data=data, source=source, **places, **part(settings, data_group))
    found.set_display_name("Data and features")
    built = {name: found.outputs[name] for name in ("events", "store")}
    planned = effect(
        run_components.plan(
            events=built["events"],
            workspace=places["workspace"],
            **served_from,
            until=until,
            warm_start=warm_start,
            step_back=step_back,
            split=settings["split"],
        ),
        "Window and start",
    )
    settings = {**settings, "split": planned.outputs["split"]}
    start = planned.outputs["start"]
    ranker = ranker_group(
        **built,
        **places,
        **served_from,
        start=start,
        truth=found.outputs["truth"],
        **part(settings, ranker_group),
    ).set_display_name("Ranker")
    candidates = candidate_group(**built, **places, start=start, **part(settings, candidate_group))
    candidates.set_display_name("Candidate generation")
    text = text_group(events=built["events"], start=start, **part(settings, text_group))
    text.set_display_name("Text matching")
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
        **places,
        **served_from,
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


@pipeline("watchrank-training", "watchrank: training", *SECTIONS)
def training_pipeline(
    workspace: str,
    data: str = "",
    source: str = "own",
    feature_repo: str = "feature_repo",
    model_repository: str = "model_repository",
    release_store: str = "",
    *,
    settings: Settings,
) -> Reports:
    """Raw logs to a release that Triton serves, its models trained from nothing.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log, or s3://. Empty: simulate one.
        source: Format of the log: own, kuairand or movielens.
        feature_repo: Folder of the Feast definitions.
        model_repository: What Triton serves from, a folder or s3://.
        release_store: Where Tritons follow releases, a folder or s3://. Empty: Triton is told directly.
        settings: Its sections of the configuration.
    """
    return train_and_release(
        data,
        source,
        {"workspace": workspace, "feature_repo": feature_repo},
        {"model_repository": model_repository, "release_store": release_store},
        settings,
        until="",
        warm_start=False,
        step_back=True,
    )
