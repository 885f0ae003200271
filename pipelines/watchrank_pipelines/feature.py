"""The feature pipeline: a log into the workspace's events, feature tables and online store."""

from typing import NamedTuple

from kfp.dsl import HTML

from watchrank_pipelines.definition import Settings, part, pipeline
from watchrank_pipelines.groups import data_group


class Reports(NamedTuple):
    """What a run leaves to look at."""

    validation: HTML


@pipeline(
    "watchrank-feature",
    "watchrank: feature",
    "engine",
    "spark",
    "simulation",
    "ingestion",
    "validation",
    "features",
)
def feature_pipeline(
    workspace: str,
    data: str = "",
    source: str = "own",
    feature_repo: str = "feature_repo",
    *,
    settings: Settings,
) -> Reports:
    """A log into events, feature tables and the online store; what serves reads fresh features from then on.

    Args:
        workspace: Folder that keeps what outlives a run: events, features, releases.
        data: Folder of the log, or s3://. Empty: simulate one.
        source: Format of the log: own, kuairand or movielens.
        feature_repo: Folder of the Feast definitions.
        settings: Its sections of the configuration.
    """
    found = data_group(
        workspace=workspace,
        data=data,
        source=source,
        feature_repo=feature_repo,
        **part(settings, data_group),
    ).set_display_name("Data and features")
    return Reports(found.outputs["validation_report"])
